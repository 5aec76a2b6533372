"""`-m` makes every combination a run of its own, in a process of its own."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from bandpo.config.composition import compose
from bandpo.config.schema import Config
from bandpo.errors import UserError
from bandpo.tables import sweep as multirun
from bandpo.tables.sweep import SweepRun, launch, sweep_of


def names(*words):
    return [run.folder.name for run in sweep_of(["-m", *words])]


def test_every_combination_is_a_run_named_as_it_would_be_by_itself():
    runs = sweep_of(["-m", "method=grpo,band_kl", "seed=0,1", "trainer.steps=3"])
    assert [run.overrides for run in runs] == [
        [f"method={m}", f"seed={s}", "trainer.steps=3"] for m in ("grpo", "band_kl") for s in (0, 1)
    ]
    alone = [Path(compose("train", run.overrides, Config).run.dir) for run in runs]
    assert [run.folder for run in runs] == alone
    assert alone[0] == Path("outputs/grpo-seed0")


def test_values_that_a_name_lacks_are_added_to_it():
    assert names("learner.lr=1e-6,1e-5", "seed=0,1") == [
        f"band_kl-seed{seed}-lr_{lr}" for lr in ("1e-06", "1e-05") for seed in (0, 1)
    ]


def test_one_value_is_one_run():
    assert names("seed=3") == ["band_kl-seed3"]
    assert sweep_of(["-m", "learner.lr=1e-6"])[0].overrides == ["learner.lr=1e-06"]


def test_without_the_flag_there_is_no_sweep_and_names_given_are_kept():
    assert sweep_of(["seed=0"]) == []
    assert names("seed=0,1", "run.name=x-${seed}") == ["x-0", "x-1"]
    assert names("seed=0", "run.name=x") == ["x"]
    with pytest.raises(UserError):
        sweep_of(["--multirun", "seed=[0"])


def test_every_combination_is_validated_before_the_first_starts(command, capsys, monkeypatch):
    monkeypatch.setattr(multirun, "_train", lambda overrides: pytest.fail("a run was started"))
    line = ["train", "-m", "method=grpo,nonsense", "seed=0,1", "learner.lr=1e-6,-1"]
    assert command(*line) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "none of the 8 runs of this sweep is started" in said
    assert (
        "learner.lr=-1: Input should be greater than 0 in method=grpo seed=0 learner.lr=-1" in said
    )
    assert "method=nonsense: no such method" in said


def test_the_end_is_a_table_of_runs_exit_codes_and_last_metrics(tmp_path, monkeypatch, capsys):
    runs = [SweepRun([f"seed={seed}"], tmp_path / f"grpo-seed{seed}") for seed in (0, 1, 2)]
    for seed, run in enumerate(runs[:2]):
        run.folder.mkdir()
        lines = [
            {"step": 0, "eval/amc23/mean@32": 0.25, "eval/amc23/pass@32": 0.5},
            {"step": 7, "reward/mean": 0.125 * (seed + 1), "time/step_s": 1.0},
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (run.folder / "metrics.jsonl").write_text(text)
    codes = iter([(0, False), (3, True)])
    monkeypatch.setattr(multirun, "_train", lambda overrides: next(codes))
    monkeypatch.setattr(multirun, "Console", lambda: Console(width=200))
    assert launch(runs) == 3
    rows = [re.split(r"\s*[│┃]\s*", line)[1:-1] for line in capsys.readouterr().out.splitlines()]
    assert [row for row in rows if row] == [
        ["run", "exit code", "step", "eval/amc23/mean@32", "reward/mean"],
        [str(runs[0].folder), "0", "7", "0.25", "0.125"],
        [str(runs[1].folder), "3", "7", "0.25", "0.25"],
        [str(runs[2].folder), "not started", "", "", ""],
    ]


@pytest.mark.parametrize("word", ["run.name=x", "run.dir=outputs/x"])
def test_runs_that_would_share_a_folder_are_refused(word):
    with pytest.raises(UserError, match=r"2 runs of this sweep would share one folder"):
        sweep_of(["-m", "seed=0,1", word])


def runs_of(*words):
    return [SweepRun([word], Path("nowhere") / word) for word in words]


@pytest.fixture
def program(monkeypatch):
    """Puts a program in the place of `bandpo train`; it gets the last override."""
    original = subprocess.Popen

    def put(code):
        monkeypatch.setattr(
            multirun.subprocess,
            "Popen",
            lambda command, **how: original([sys.executable, "-c", code, command[-1]], **how),
        )

    return put


def test_the_others_run_when_one_fails(program, capfd):
    program("import sys; print(sys.argv); sys.exit('b' in sys.argv)")
    assert launch(runs_of("a", "b", "c")) == 1
    shown = capfd.readouterr()
    assert "run 3 of 3" in shown.out
    assert "failed with exit code 1: bandpo train b" in shown.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_run_save_and_starts_no_other(program, capfd, number):
    """The run takes longer to end than Python's own wait allows after Ctrl-C."""
    program(
        "import os, signal, sys, time\n"
        "def save(*_):\n"
        "    time.sleep(1)\n"
        "    print('saved', flush=True)\n"
        "    sys.exit(0)\n"
        f"signal.signal({int(number)}, save)\n"
        f"os.kill(os.getppid(), {int(number)})\n"
        "time.sleep(60)\n"
    )
    before = signal.getsignal(number)
    assert launch(runs_of("a", "b")) == 0
    shown = capfd.readouterr()
    assert "saved" in shown.out and "run 2 of" not in shown.out
    assert "the same command resumes it" in shown.err
    assert signal.getsignal(number) is before
