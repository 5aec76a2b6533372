"""`-m` makes every combination a run of its own, in a process of its own."""

import sys

import pytest

from bandpo import multirun
from bandpo.errors import UserError
from bandpo.multirun import launch, sweep_of


def test_every_combination_gets_a_name():
    runs = sweep_of(["-m", "method=grpo,band_kl", "seed=0,1", "trainer.steps=3"])
    assert runs == [
        [f"method={m}", f"seed={s}", "trainer.steps=3", f"run.name=method_{m}-seed_{s}"]
        for m in ("grpo", "band_kl")
        for s in (0, 1)
    ]


def test_without_the_flag_there_is_no_sweep_and_names_given_are_kept():
    assert sweep_of(["seed=0"]) == []
    assert sweep_of(["-m", "seed=0,1", "run.name=x"])[1] == ["seed=1", "run.name=x"]
    with pytest.raises(UserError):
        sweep_of(["--multirun", "seed=[0"])


def test_the_others_run_when_one_fails(monkeypatch, capfd):
    program = [sys.executable, "-c", "import sys; print(sys.argv); sys.exit('b' in sys.argv)"]
    original = multirun.subprocess.run
    monkeypatch.setattr(
        multirun.subprocess, "run", lambda command: original([*program, command[-1]])
    )
    assert launch([["a"], ["b"], ["c"]]) == 1
    shown = capfd.readouterr()
    assert "run 3 of 3" in shown.out
    assert "failed with exit code 1: bandpo train b" in shown.err
