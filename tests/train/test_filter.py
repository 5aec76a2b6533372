"""`rollout.filter_groups` from start to end: what is trained, and what the metrics say of it."""

import json

import pytest
from small_runs import LOW_BYTES, metrics_of

pytest.importorskip("deepspeed")

# A run on 16 problems of which a step takes 8: refills go through the data again.
SETTINGS = [
    *("trainer.steps=3", "trainer.sample_every=1", "trainer.checkpoint_every=0", "rollout=hf"),
    *("method=grpo", "data.train.count=16", "rollout.filter_groups=true", "eval.benchmarks=[]"),
    *("rollout.prompts_per_step=8", "rollout.group_size=2", "rollout.max_tokens=5"),
    *("learner.updates_per_rollout=2", "learner.lr=1e-4"),
    # Half of the untrained policy's bytes are low: right is who has more of them.
    *(*LOW_BYTES, "+reward.threshold=0.65"),
]


# Metrics of what was drawn, which do not depend on the ranks.
DRAWN = ("reward/", "rollout/", "kept/", "length/", "verifier/")


def of_steps(folder):
    """Metrics and samples of each step of a run."""
    steps = [
        [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted((folder / "samples").glob("*.jsonl"))
    ]
    return metrics_of(folder)[1:], steps


@pytest.fixture(scope="module")
def alone(command, untrained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "alone"
    assert (
        command(
            "train", *SETTINGS, "policy=embedded", f"model.path={untrained()}", f"run.dir={folder}"
        )
        == 0
    )
    return of_steps(folder)


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


def test_an_engine_that_gives_tuples_and_lists_trains_the_same(alone, command, untrained, tmp_path):
    own = (
        "policy=embedded",
        "rollout=in_lists",
        f"model.path={untrained()}",
        f"run.dir={tmp_path}",
    )
    assert command("train", *[s for s in SETTINGS if s != "rollout=hf"], *own) == 0
    lines, steps = of_steps(tmp_path)
    assert steps == alone[1]
    for found, expected in zip(lines, alone[0], strict=True):
        values = {k: v for k, v in expected.items() if not k.startswith(("time/", "throughput/"))}
        assert {key: found[key] for key in values} == values


def test_two_ranks_train_on_what_one_trains_on(alone, bandpo, untrained, tmp_path):
    own = ("policy=embedded", f"model.path={untrained()}", f"run.dir={tmp_path}")
    bandpo("train", *SETTINGS, *own, ranks=2)
    lines, steps = of_steps(tmp_path)
    assert steps == alone[1]
    for found, expected in zip(lines, alone[0], strict=True):
        drawn = {k: v for k, v in expected.items() if k.startswith(DRAWN)}
        assert len(drawn) > 25
        assert {key: found[key] for key in drawn} == drawn
        assert found["grad/norm"] == pytest.approx(expected["grad/norm"], rel=1e-4)
