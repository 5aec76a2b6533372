"""`rollout.lag=1` from start to end, with dynamic sampling: exact on resume."""

import json
import shutil

import pytest
from small_runs import LOW_BYTES, metrics_of, timeless

pytest.importorskip("deepspeed")

SETTINGS = [
    *("rollout=in_a_thread", "rollout.lag=1", "rollout.filter_groups=reward", "trainer.steps=4"),
    *("trainer.checkpoint_every=1", "trainer.keep_checkpoints=9", "eval.benchmarks=[]"),
    *("rollout.prompts_per_step=4", "rollout.group_size=4", "rollout.max_tokens=6"),
    *("learner.updates_per_rollout=2", "learner.zero_stage=2", "learner.lr=0.003"),
    *("trainer.sample_every=1", *LOW_BYTES),
]


@pytest.fixture
def trained(command, bandpo, untrained):
    """The metrics of a run without those of time."""

    def run(folder, ranks, *more):
        arguments = [
            "train",
            *SETTINGS,
            *more,
            "policy=embedded",
            f"model.path={untrained()}",
            f"run.dir={folder}",
        ]
        if ranks == 1:
            assert command(*arguments) == 0
        else:
            bandpo(*arguments, ranks=ranks)
        # The last step starts no rollout.
        assert all(line["rollout/overlap_s"] > 0 for line in metrics_of(folder)[1:-1])
        return timeless(folder, "rollout/overlap_s")

    return run


def versions(folder, step):
    """The weight versions of the step's samples."""
    lines = (folder / f"samples/step_{step:06d}.jsonl").read_text().splitlines()
    return {json.loads(line)["weight_version"] for line in lines}


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_one_step_off_policy_resumes_exactly(ranks, trained, tmp_path):
    whole = tmp_path / "whole"
    expected = trained(whole, ranks)
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
    assert trained(stopped, ranks) == expected
    assert [versions(stopped, step) for step in (3, 4)] == [{2}, {3}]


def test_with_a_correction_ratios_are_to_the_weights_before_the_update(trained, tmp_path):
    """Three policies: ratios are to the learner's own old one, weights to the sampler's."""
    one_update = ("learner.updates_per_rollout=1", "trainer.steps=3")
    found = {
        name: trained(tmp_path / name, 1, *one_update, f"method.correction={name}")
        for name in ("none", "token_tis", "sequence_tis")
    }
    for name, lines in found.items():
        assert [line["rollout/lag"] for line in lines[1:]] == [0, 1, 1]
        for line in lines[2:]:
            if name == "none":  # the old policy is the one that sampled
                assert line["policy/kl_old"] > 1e-5
                assert not any(metric.startswith("mismatch/") for metric in line)
            else:  # the old policy is the one that learns, before its only update
                assert line["policy/kl_old"] == 0 and line["ratio/max"] == 1
                assert line["mismatch/k3"] > 1e-5 and line["mismatch/sequence_weight_max"] > 1.01
    # Where nothing is clipped or truncated, w·r with r = 1 is the ratio to the sampler: its
    # gradient is that without a correction. With the weight of whole sequences it is another.
    norms = {name: lines[2]["grad/norm"] for name, lines in found.items()}
    assert found["none"][2]["clip/high_frac"] == found["none"][2]["clip/low_frac"] == 0
    assert norms["token_tis"] == pytest.approx(norms["none"], rel=1e-5)
    assert norms["sequence_tis"] != pytest.approx(norms["none"], rel=1e-3)


def test_with_a_correction_it_resumes_exactly_too(trained, tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    expected = trained(whole, 1, "method.correction=sequence_tis")
    shutil.copytree(whole, stopped, symlinks=True)
    for step in (3, 4):
        shutil.rmtree(stopped / f"checkpoints/step_{step:06d}")
    (stopped / "checkpoints/latest").unlink()
    (stopped / "checkpoints/latest").symlink_to("step_000002")
    assert trained(stopped, 1, "method.correction=sequence_tis") == expected
