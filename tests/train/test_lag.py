"""`rollout.lag=1` from start to end, with dynamic sampling: exact on resume."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("deepspeed")

HERE = Path(__file__).parent
STEPS = 4


def trained(model, folder, ranks):
    """The metrics of a run without those of time."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command = [sys.executable, *(launcher if ranks > 1 else []), "-m", "bandpo.cli", "train"]
    command += [f"model.path={model}", f"run.dir={folder}", f"trainer.steps={STEPS}"]
    command += ["rollout=in_a_thread", "rollout.lag=1", "rollout.filter_groups=reward"]
    command += ["trainer.checkpoint_every=1", "trainer.keep_checkpoints=9", "eval.benchmarks=[]"]
    command += ["rollout.prompts_per_step=4", "rollout.group_size=4", "rollout.max_tokens=6"]
    command += ["learner.updates_per_rollout=2", "learner.zero_stage=2", "learner.lr=0.003"]
    command += [f"hydra.searchpath=[file://{HERE}/configs]", "reward=low_bytes"]
    command += ["trainer.sample_every=1"]
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    # The last step starts no rollout.
    assert all(line["rollout/overlap_s"] > 0 for line in lines[1:-1])
    timed = ("time/", "throughput/", "rollout/overlap_s")
    return [{k: v for k, v in line.items() if not k.startswith(timed)} for line in lines]


def versions(folder, step):
    """The weight versions of the step's samples."""
    lines = (folder / f"samples/step_{step:06d}.jsonl").read_text().splitlines()
    return {json.loads(line)["weight_version"] for line in lines}


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_one_step_off_policy_resumes_exactly(ranks, untrained, tmp_path):
    model, whole = untrained(), tmp_path / "whole"
    expected = trained(model, whole, ranks)
    assert [line.get("rollout/lag") for line in expected] == [None, 0, 1, 1, 1]
    # Version v holds the weights of step v−1: each step but the first samples with those before.
    assert [versions(whole, step) for step in (1, 2, 3, 4)] == [{1}, {1}, {2}, {3}]
    for line in expected[1:]:
        assert line["grad/norm"] > 0
        # Ratios are 1 at the first update of samples of the same weights, and not of older ones.
        assert ("mismatch/logprob_abs_mean" in line) == (line["rollout/lag"] == 0)
    assert expected[3]["policy/kl_old"] > 0

    stopped = tmp_path / "stopped"
    shutil.copytree(whole, stopped, symlinks=True)
    for step in (3, 4):
        shutil.rmtree(stopped / f"checkpoints/step_{step:06d}")
    (stopped / "checkpoints/latest").unlink()
    (stopped / "checkpoints/latest").symlink_to("step_000002")
    assert trained(model, stopped, ranks) == expected
    assert [versions(stopped, step) for step in (3, 4)] == [{2}, {3}]
