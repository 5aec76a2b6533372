"""`-m` makes every combination a run of its own, in a process of its own."""

import signal
import subprocess
import sys

import pytest

from bandpo.config.composition import compose
from bandpo.config.schema import Config
from bandpo.errors import UserError
from bandpo.tables import sweep as multirun
from bandpo.tables.sweep import launch, sweep_of


def test_every_combination_gets_a_name():
    runs = sweep_of(["-m", "method=grpo,band_kl", "seed=0,1", "trainer.steps=3"])
    assert runs == [
        [f"method={m}", f"seed={s}", "trainer.steps=3", f"run.name=method_{m}-seed_{s}"]
        for m in ("grpo", "band_kl")
        for s in (0, 1)
    ]


def test_without_the_flag_there_is_no_sweep_and_names_given_are_kept():
    assert sweep_of(["seed=0"]) == []
    named = "run.name=x-${seed}"
    runs = sweep_of(["-m", "seed=0,1", named])
    assert [compose("train", run, Config).run.name for run in runs] == ["x-0", "x-1"]
    assert sweep_of(["-m", "seed=0", "run.name=x"]) == [["seed=0", "run.name=x"]]
    with pytest.raises(UserError):
        sweep_of(["--multirun", "seed=[0"])


@pytest.mark.parametrize("word", ["run.name=x", "run.dir=outputs/x"])
def test_runs_that_would_share_a_folder_are_refused(word):
    with pytest.raises(UserError, match=r"2 runs of this sweep would share one folder"):
        sweep_of(["-m", "seed=0,1", word])


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
    assert launch([["a"], ["b"], ["c"]]) == 1
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
    assert launch([["a"], ["b"]]) == 0
    shown = capfd.readouterr()
    assert "saved" in shown.out and "run 2" not in shown.out
    assert "the same command resumes it" in shown.err
    assert signal.getsignal(number) is before
