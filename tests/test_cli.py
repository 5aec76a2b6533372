"""How commands end: exit codes, what is said of failures, and what is not."""

import json
import logging
import sys
from types import SimpleNamespace

import pytest
from hydra.utils import instantiate

from bandpo import cli
from bandpo.errors import RunHalted, UserError

SECRET = "correct-horse-battery"


class Picky:
    """Refuses its arguments, as a part of the configuration does."""

    def __init__(self) -> None:
        raise UserError("mend this")


def fails(error):
    def command(arguments):
        raise error

    return command


def built_by_hydra(arguments):
    instantiate({"_target_": f"{__name__}.Picky"})


@pytest.fixture
def end_of(monkeypatch, capsys):
    """Runs a command that is given as a function; returns its exit code and its stderr."""

    def run(command, **environment):
        monkeypatch.setitem(sys.modules, "a_command", SimpleNamespace(main=command))
        monkeypatch.setitem(cli.COMMANDS, "try", ("a_command:main", ""))
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return cli.main(["try"]), capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        (lambda arguments: None, 0, ""),
        (fails(UserError("mend this")), 2, "bandpo try: mend this\n"),
        (built_by_hydra, 2, "bandpo try: mend this\n"),
        (fails(RunHalted("enough")), 1, "bandpo try: enough\n"),
        (fails(KeyboardInterrupt()), 130, "bandpo try: interrupted\n"),
    ],
)
def test_what_is_expected_is_told_without_a_traceback(end_of, command, code, said):
    assert end_of(command) == (code, said)


def test_a_failure_shows_its_traceback_where_the_launcher_finds_it_too(end_of, tmp_path):
    file = tmp_path / "error.json"
    code, said = end_of(
        fails(ValueError("the cause")), WORLD_SIZE="2", RANK="1", TORCHELASTIC_ERROR_FILE=str(file)
    )
    assert code == 1
    assert all(line.startswith("[rank1]: ") for line in said.splitlines())
    assert said.rstrip().endswith("ValueError: the cause")
    told = json.loads(file.read_text())["message"]
    assert told["message"] == "ValueError: the cause"
    assert "Traceback" in told["extraInfo"]["py_callstack"]


def test_what_all_ranks_say_is_said_once(end_of):
    assert end_of(fails(RunHalted("enough")), RANK="1") == (1, "")


@pytest.mark.parametrize("error", [UserError, RunHalted, ValueError])
def test_no_failure_tells_a_secret(end_of, tmp_path, error):
    file = tmp_path / "error.json"
    settings = {"HF_TOKEN": SECRET, "TORCHELASTIC_ERROR_FILE": str(file)}
    _, said = end_of(fails(error(f"401 for {SECRET}")), **settings)
    assert "401 for (hidden)" in said and SECRET not in said
    assert not file.exists() or SECRET not in file.read_text()


def test_no_log_tells_a_secret(end_of):
    def command(arguments):
        logging.getLogger("bandpo.somewhere").warning("401 for %s", SECRET)

    _, said = end_of(command, HF_TOKEN=SECRET)
    assert said == "401 for (hidden)\n"


def test_a_line_is_said_once_whatever_a_library_does_to_the_root_logger(end_of):
    root, before = logging.getLogger(), logging.getLogger("bandpo").__dict__.copy()

    def command(arguments):
        logging.basicConfig(level=logging.INFO, stream=sys.stderr, force=True)
        logging.getLogger("bandpo.somewhere").info("a line")

    handlers, level = root.handlers[:], root.level
    try:
        assert end_of(command)[1] == end_of(command)[1] == "a line\n"
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    assert logging.getLogger("bandpo").__dict__ == before


@pytest.mark.parametrize(("rank", "said"), [("0", "of data\nof ranks\n"), ("1", "of ranks\n")])
def test_what_every_rank_reads_in_the_data_is_said_by_the_first(end_of, rank, said):
    def command(arguments):
        logging.getLogger("bandpo.data.sources").warning("of data")
        logging.getLogger("bandpo.run.job").warning("of ranks")

    assert end_of(command, RANK=rank) == (0, said)
