"""What a run recorded gives back the run's own metrics."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from bandpo.methods.method import load_methods
from bandpo.methods.records import find_dumps
from bandpo.methods.replay import replay

pytest.importorskip("deepspeed")

# The untrained policy writes random bytes; tests/train has a reward that they vary in.
TRAIN = Path(__file__).parents[1] / "train"
SETTINGS = [
    *("rollout=hf", "trainer.steps=2", "trainer.dump_tokens_every=2", "trainer.checkpoint_every=0"),
    *("rollout.prompts_per_step=4", "rollout.group_size=4", "rollout.max_tokens=16"),
    # Several updates of several micro-batches, with steps so long that ratios leave their bounds.
    *("learner.updates_per_rollout=4", "learner.lr=3e-3", "learner.micro_batch_tokens=64"),
    *("eval.benchmarks=[]", f"hydra.searchpath=[file://{TRAIN}/configs]", "reward=low_bytes"),
]


@pytest.fixture(scope="module")
def run(untrained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "recorded"
    overrides = [*SETTINGS, f"model.path={untrained()}", f"run.dir={folder}", "method=gspo"]
    done = subprocess.run(
        [sys.executable, "-m", "bandpo.cli", "train", *overrides],
        cwd=folder.parent,
        env={**os.environ, "PYTHONPATH": f"{TRAIN.parents[1]}{os.pathsep}{TRAIN}"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def test_only_due_steps_are_recorded(run):
    (path,) = find_dumps([run])
    assert path.name == "step_000002-rank0.parquet"
    table = pq.read_table(path)
    assert set(table["step"].to_pylist()) == {2}
    assert set(table["update"].to_pylist()) == {0, 1, 2, 3}


def test_replaying_the_methods_of_the_run_gives_its_metrics(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    metrics = json.loads(lines[-1])
    result = replay(find_dumps([run]), load_methods("gspo"))
    total = result.methods[0].total()
    assert metrics["length/tokens"] == result.tokens
    assert metrics["clip/high_frac"] > 0 < metrics["clip/low_frac"]
    same = total.keys() & metrics.keys()
    assert {"clip/high_frac", "bounds/high_mean", "ratio/mean", "policy/entropy"} <= same
    for name in same:
        assert total[name] == pytest.approx(metrics[name], rel=1e-6, abs=1e-12), name
