"""`rollout.filter_groups` from start to end: what is trained, and what the metrics say of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("deepspeed")

HERE = Path(__file__).parent


def trained(model, folder, ranks=1):
    """A run on 16 problems of which a step takes 8: refills go through the data again."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command = [sys.executable, *(launcher if ranks > 1 else []), "-m", "bandpo.cli", "train"]
    command += [f"model.path={model}", f"run.dir={folder}", "trainer.steps=3", "rollout=hf"]
    command += ["method=grpo", "data.train.count=16", "rollout.filter_groups=true"]
    command += ["rollout.prompts_per_step=8", "rollout.group_size=2", "rollout.max_tokens=5"]
    command += ["learner.updates_per_rollout=2", "learner.lr=1e-4", "eval.benchmarks=[]"]
    command += [f"hydra.searchpath=[file://{HERE}/configs]", "reward=low_bytes"]
    # Half of the untrained policy's bytes are low: right is who has more of them.
    command += ["+reward.threshold=0.65", "trainer.sample_every=1", "trainer.checkpoint_every=0"]
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-4000:]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [
        [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted((folder / "samples").glob("*.jsonl"))
    ]
    return lines[1:], steps


@pytest.fixture(scope="module")
def alone(untrained, tmp_path_factory):
    return trained(untrained(), tmp_path_factory.mktemp("runs") / "alone")


def test_a_step_trains_distinct_groups_with_right_and_wrong_answers(alone):
    lines, steps = alone
    assert sum(line["rollout/groups"] for line in lines) > 5 * 8  # beyond an epoch
    for line, samples in zip(lines, steps, strict=True):
        groups = [samples[i : i + 2] for i in range(0, len(samples), 2)]
        assert len({group[0]["problem_id"] for group in groups}) == len(groups) == 8
        assert all({s["status"] for s in group} == {"correct", "wrong"} for group in groups)
        assert line["rollout/groups_kept"] == 8 and line["kept/reward/correct_frac"] == 0.5
        assert line["kept/length/tokens"] == sum(s["tokens"] for s in samples)
        discarded = line["length/tokens"] - line["kept/length/tokens"]
        assert line["rollout/tokens_discarded"] == discarded > 0
        assert line["reward/mean"] != line["kept/reward/mean"]
        assert line["grad/norm"] > 0


@pytest.mark.slow
def test_two_ranks_train_on_what_one_trains_on(alone, untrained, tmp_path):
    lines, steps = trained(untrained(), tmp_path / "two", ranks=2)
    assert steps == alone[1]
    for found, expected in zip(lines, alone[0], strict=True):
        drawn = {k: v for k, v in expected.items() if k.startswith(("reward", "rollout", "kept"))}
        assert {key: found[key] for key in drawn} == drawn
        assert found["grad/norm"] == pytest.approx(expected["grad/norm"], rel=1e-4)
