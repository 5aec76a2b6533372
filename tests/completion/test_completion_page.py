"""docs/completion.md: its examples complete to what it says, and its commands do what it says."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bandpo import cli
from bandpo.completion.commands import complete
from bandpo.completion.line import read_line
from bandpo.completion.shells import script

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "completion.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^(bandpo .*)⇥ *→ (\S+)$", PAGE, re.MULTILINE)
INSTALLED = re.findall(r"^bandpo (--install-completion \w+) ", PAGE, re.MULTILINE)
SHOWN = re.findall(r"^.*bandpo --show-completion (\w+)\)?.*$", PAGE, re.MULTILINE)


def test_the_page_has_examples():
    assert len(EXAMPLES) >= 10 and INSTALLED and set(SHOWN) == {"bash", "fish"}


@pytest.mark.parametrize(("typed", "candidate"), EXAMPLES)
def test_an_example_completes_so(typed, candidate):
    line = read_line(typed)
    assert candidate in {way.text for way in complete(line.before, line.word)}


@pytest.mark.parametrize("command", INSTALLED)
def test_a_command_writes_the_file_that_the_page_names(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    for variable in ("XDG_DATA_HOME", "BASH_COMPLETION_USER_DIR", "ZDOTDIR", "XDG_CONFIG_HOME"):
        assert f"`{variable}`" in PAGE
        monkeypatch.delenv(variable, raising=False)
    files = dict(re.findall(r"^\| (\w+) \| `~/(.*)` \|$", PAGE, re.MULTILINE))
    for shell in ("bash", "zsh", "fish"):
        assert cli.main(["--install-completion", shell]) == 0
        assert (tmp_path / files[shell]).read_text() == script(shell)
    assert cli.main(command.split()) == 0
    assert "already there" in capsys.readouterr().out


@pytest.mark.parametrize("line", re.findall(r"^.*--show-completion.*$", PAGE, re.MULTILINE))
def test_a_script_is_read_by_its_shell(line, tmp_path):
    shell = "fish" if "fish" in line else "bash"
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    program = tmp_path / "bandpo"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m bandpo.cli "$@"\n')
    program.chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "PYTHONPATH": str(ROOT),
        "HOME": str(tmp_path),
    }
    asked = "complete -p bandpo" if shell == "bash" else "complete -C 'bandpo train method=grp'"
    done = subprocess.run(
        [shell, "-c", f"{line.split('   ')[0]}\n{asked}"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.stderr == "" and done.stdout.startswith(
        "complete -F _bandpo bandpo" if shell == "bash" else "method=grpo\tGRPO"
    )
