"""A run that prunes samples: its draws are the same on any ranks and after a resume."""

import shutil
from pathlib import Path

import pytest
from small_runs import LOW_BYTES, metrics_of, timeless

pytest.importorskip("deepspeed")

SETTINGS = [
    *("policy=embedded", "data.train.count=12", "trainer.steps=3", "trainer.checkpoint_every=1"),
    *("trainer.keep_checkpoints=9", "eval.benchmarks=[]", "learner.updates_per_rollout=2"),
    *("rollout=hf", "rollout.prompts_per_step=4", "rollout.group_size=4", "rollout.max_tokens=6"),
    *("method=query_kl", "learner.prune=0.6", "learner.lr=1e-3", *LOW_BYTES),
    "+reward.threshold=0.5",
]
DRAWN = ("reward/", "rollout/", "length/", "learn/pruned")


@pytest.fixture(scope="module")
def alone(command, untrained, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "alone"
    assert command("train", *SETTINGS, f"model.path={untrained()}", f"run.dir={folder}") == 0
    return folder


def test_a_share_of_the_samples_is_not_computed(alone):
    shares = [line.get("learn/pruned_frac", 0.0) for line in metrics_of(alone)[1:]]
    assert 0.1 < sum(shares) / len(shares) < 0.6
    assert all(line["grad/norm"] > 0 for line in metrics_of(alone)[1:])


def test_a_resumed_run_prunes_what_it_would_have(alone, command, untrained, tmp_path):
    folder = tmp_path / "stopped"
    shutil.copytree(alone, folder, symlinks=True)
    for step in (2, 3):
        shutil.rmtree(folder / f"checkpoints/step_{step:06d}")
    (folder / "checkpoints/latest").unlink()
    (folder / "checkpoints/latest").symlink_to("step_000001")
    assert command("train", *SETTINGS, f"model.path={untrained()}", f"run.dir={folder}") == 0
    assert timeless(folder) == timeless(alone)


def test_two_ranks_prune_what_one_prunes(alone, bandpo, untrained, tmp_path):
    bandpo("train", *SETTINGS, f"model.path={untrained()}", f"run.dir={tmp_path}", ranks=2)
    for found, expected in zip(metrics_of(tmp_path)[1:], metrics_of(alone)[1:], strict=True):
        drawn = {k: v for k, v in expected.items() if k.startswith(DRAWN)}
        assert {key: found[key] for key in drawn} == drawn
        assert found["loss/policy"] == pytest.approx(expected["loss/policy"], abs=1e-5)
