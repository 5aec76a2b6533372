"""Runs that share an engine, one after another, are the runs that they would be alone."""

import os
from pathlib import Path

import pytest
from small_runs import FIXTURES, LOW_BYTES, timeless

pytest.importorskip("deepspeed")

from bandpo.tables.series import launch_series

BASE = [
    *("trainer.steps=2", "trainer.checkpoint_every=0", "rollout.prompts_per_step=4"),
    *("rollout.group_size=4", "rollout.max_tokens=8", "learner.updates_per_rollout=2"),
    *("learner.lr=1e-2", "eval.benchmarks=[]", *LOW_BYTES),
]


FAILING = "failing_engine.FailingEngine"


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{FIXTURES.parents[1]}{os.pathsep}{FIXTURES}")


def runs_of(folder: Path, model: Path, *overrides: str) -> list[tuple[str, ...]]:
    """Three runs: a method, bad input, and another method with the first one's leftovers."""
    variants = {"first": "method=grpo", "bad": "learner.lr=-1", "second": "method=band_kl"}
    return [
        (
            *BASE,
            *overrides,
            "policy=embedded",
            f"model.path={model}",
            f"run.dir={folder / name}",
            variant,
        )
        for name, variant in variants.items()
    ]


def assert_runs_are_as_alone(folder: Path, model: Path, *overrides: str) -> None:
    heard: dict[int, int] = {}
    codes = launch_series(runs_of(folder / "together", model, *overrides), report=heard.__setitem__)
    assert codes == list(heard.values()) == [0, 2, 0]
    alone = runs_of(folder / "alone", model, *overrides)[2:]
    assert launch_series(alone) == [0]
    together = timeless(folder / "together/second")
    assert len(together) == 3
    assert together == timeless(folder / "alone/second")
    assert together != timeless(folder / "together/first")


def test_a_shared_engine_changes_no_run(untrained, tmp_path):
    assert_runs_are_as_alone(tmp_path, untrained(), "rollout=hf")


@pytest.mark.slow
def test_a_shared_vllm_changes_no_run(untrained, tmp_path):
    pytest.importorskip("vllm")
    assert_runs_are_as_alone(tmp_path, untrained(), "rollout.engine.enforce_eager=true")


def test_a_run_that_breaks_its_worker_fails_alone(untrained, tmp_path):
    broken, good = tmp_path / "broken", tmp_path / "good"
    base = (*BASE, "rollout=hf", "policy=embedded", f"model.path={untrained()}", "trainer.steps=1")
    runs = [
        (*base, f"run.dir={broken}", f"rollout.engine._target_={FAILING}"),
        (*base, f"run.dir={good}"),
    ]
    assert launch_series(runs) == [1, 0]
    assert len(timeless(good)) == 2
