"""The commands of docs/explain.md do what the page says."""

import re
import shlex
from pathlib import Path

import pyarrow.dataset
import pytest
from token_dumps import random_batch, write_dump

from bandpo.cli import main
from bandpo.methods.records import SCHEMA, dump_path

PAGE = (Path(__file__).parents[2] / "docs" / "explain.md").read_text()
COMMANDS = [
    line.removeprefix("bandpo ")
    for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines()
    if not line.startswith("bandpo train")
]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page_is_true(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "outputs" / "band_kl-seed0"
    write_dump(dump_path(run, 10, 0), [random_batch(0)])
    assert main(shlex.split(command)) == 0, capsys.readouterr().err
    written = re.search(r"written to (\S+)", capsys.readouterr().out)
    assert written is None or Path(written[1]).is_file()


def test_the_table_of_columns_is_complete(tmp_path):
    for step in (10, 20):
        write_dump(dump_path(tmp_path, step, 0), [random_batch(0, step=step)])
    names = pyarrow.dataset.dataset(tmp_path / "tokens").schema.names
    assert names == SCHEMA.names and all(f"`{name}`" in PAGE for name in names)
