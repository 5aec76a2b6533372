"""`bandpo --complete`, as the scripts of the shells call it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bandpo import cli
from bandpo.completion import commands

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "hydra", "omegaconf", "pydantic", "yaml", "rich", "numpy", "psutil")
BREAKS = " \t\n\"'><=;|&(:"


@pytest.fixture
def answer(capfdbinary):
    def run(*arguments, code=0):
        assert cli.main(["--complete", *arguments]) == code
        sys.stdout.flush()
        out, err = capfdbinary.readouterr()
        assert err == b""
        return out.decode("utf-8", "surrogateescape").splitlines()

    return run


def test_bash_gets_what_it_replaces(answer):
    assert answer("bash", "bandpo train model.dtype=", BREAKS) == ["", "float32", "bfloat16"]
    assert answer("bash", "bandpo train model.dtype=", "") == [
        "", "model.dtype=float32", "model.dtype=bfloat16",
    ]  # fmt: skip
    assert answer("bash", "bandpo train learner.l", BREAKS)[:2] == ["nospace", "learner.lr="]
    # Those that end bring their own space where others must not have one.
    both = answer("bash", "bandpo eval benchmarks=", BREAKS)
    assert both[0] == "nospace" and {"gsm8k ", "file:"} <= set(both)
    assert answer("bash", "bandpo eval benchmarks=[amc23,gsm", BREAKS + ",") == ["nospace", "gsm8k"]


def test_zsh_gets_kinds_and_descriptions(answer):
    assert answer("zsh", "bandpo train method=grp") == [
        "closed method=grpo:GRPO with canonical symmetric clipping"
    ]
    assert answer("zsh", "bandpo train model.path=") == [
        "closed model.path=embedded", "closed model.path=smollm2", "folders model.path=",
    ]  # fmt: skip
    assert "open benchmarks=file\\::a file of your own" in answer("zsh", "bandpo eval benchmarks=f")


def test_fish_gets_descriptions_and_no_space_within_a_list(answer):
    assert answer("fish", "bandpo plan --mean") == ["--mean-tokens\texpected tokens per completion"]
    assert answer("fish", "bandpo eval benchmarks=[gsm") == [
        "benchmarks=[gsm8k,\tanother item", "benchmarks=[gsm8k]\tthe end",
    ]  # fmt: skip


def test_paths_are_those_of_the_disk(answer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("my run", "my data", ".hidden"):
        (tmp_path / name).mkdir()
    (tmp_path / "my.jsonl").touch()
    (tmp_path / b"my\xff".decode("utf-8", "surrogateescape")).touch()  # in no encoding
    assert set(answer("fish", "bandpo compare my")) == {
        "my run/",
        "my data/",
        "my.jsonl",
        "my\udcff",
    }
    assert answer("bash", "bandpo train model.path=my", BREAKS) == [
        "filenames",
        "my data",
        "my run",
    ]
    assert answer("fish", "bandpo compare .") == [".hidden/"]
    assert answer("fish", "bandpo compare ~/my\\ r") == ["~/my run/"]


def test_descriptions_are_of_characters_that_the_terminal_shows(answer, monkeypatch):
    monkeypatch.delenv("LC_ALL", raising=False)
    monkeypatch.setenv("LC_CTYPE", "C.UTF-8")
    (line,) = answer("fish", "bandpo train method=band_chi")
    assert "χ²" in line
    monkeypatch.setenv("LC_ALL", "C")
    (line,) = answer("fish", "bandpo train method=band_chi")
    assert "Pearson" in line and line.isascii()


@pytest.mark.parametrize(
    "arguments", [(), ("tcsh", "bandpo "), ("fish",), ("fish", "bandpo compare /no/such/fol")]
)
def test_a_failure_is_silent(arguments, answer):
    assert answer(*arguments, code=1) == []


def test_a_broken_index_is_silent(answer, tmp_path, monkeypatch):
    (tmp_path / "index.json").write_text("{")
    monkeypatch.setattr(commands, "INDEX", tmp_path / "index.json")
    assert answer("fish", "bandpo ", code=1) == []


@pytest.mark.parametrize(
    "arguments",
    [["--complete", "bash", "bandpo train method=", "=:"], ["--help"], ["--version"], ["nonsense"]],
)
def test_what_must_be_quick_imports_little(arguments):
    code = (
        "import json, sys\nfrom bandpo import cli\ncli.main(sys.argv[1:])\n"
        f"print(json.dumps([name for name in {HEAVY} if name in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT
    )
    assert json.loads(done.stdout.splitlines()[-1]) == []
