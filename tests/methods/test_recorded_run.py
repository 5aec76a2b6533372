"""What a run recorded gives back the run's own metrics."""

import pyarrow.parquet as pq
import pytest
from small_runs import LOW_BYTES, metrics_of

from bandpo.methods.method import load_methods
from bandpo.methods.records import find_dumps
from bandpo.methods.replay import replay

pytest.importorskip("deepspeed")

SETTINGS = [
    *("rollout=hf", "trainer.steps=2", "trainer.dump_tokens_every=2", "trainer.checkpoint_every=0"),
    *("rollout.prompts_per_step=4", "rollout.group_size=4", "rollout.max_tokens=16"),
    # Several updates of several micro-batches, with steps so long that ratios leave their bounds.
    *("learner.updates_per_rollout=4", "learner.lr=3e-3", "learner.micro_batch_tokens=64"),
    *("eval.benchmarks=[]", *LOW_BYTES),
]


@pytest.fixture(scope="module")
def run(command, untrained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "recorded"
    overrides = [
        *SETTINGS,
        "policy=embedded",
        f"model.path={untrained()}",
        f"run.dir={folder}",
        "method=gspo",
    ]
    assert command("train", *overrides) == 0
    return folder


def test_only_due_steps_are_recorded(run):
    (path,) = find_dumps([run])
    assert path.name == "step_000002-rank0.parquet"
    table = pq.read_table(path)
    assert set(table["step"].to_pylist()) == {2}
    assert set(table["update"].to_pylist()) == {0, 1, 2, 3}


def test_replaying_the_methods_of_the_run_gives_its_metrics(run):
    metrics = metrics_of(run)[-1]
    result = replay(find_dumps([run]), load_methods("gspo"))
    total = result.methods[0].total()
    assert metrics["length/tokens"] == result.tokens
    assert metrics["clip/high_frac"] > 0 < metrics["clip/low_frac"]
    same = total.keys() & metrics.keys()
    assert {"clip/high_frac", "bounds/high_mean", "ratio/mean", "policy/entropy"} <= same
    for name in same:
        assert total[name] == pytest.approx(metrics[name], rel=1e-6, abs=1e-12), name
