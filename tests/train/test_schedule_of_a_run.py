"""Runs with a learning-rate schedule or an entropy floor, and their resumption."""

import json
import math

import pytest
from small_runs import LOW_BYTES, metrics_of, timeless

OVERRIDES = [
    *("policy=embedded", "rollout=hf", "method=grpo", "learner.lr=1e-3"),
    "trainer.checkpoint_every=1",
    *("rollout.prompts_per_step=4", "rollout.group_size=4", "rollout.max_tokens=8"),
    *("learner.updates_per_rollout=2", "eval.benchmarks=[]", "method.kl_coef=0"),
    *LOW_BYTES,
]


@pytest.fixture(scope="module")
def trained(command, untrained, tmp_path_factory):
    """Trains into a folder of this name with some overrides; the folder."""
    root, model = tmp_path_factory.mktemp("runs"), f"model.path={untrained(tied=False)}"

    def run(name, *overrides):
        assert command("train", *OVERRIDES, model, f"run.dir={root / name}", *overrides) == 0
        return root / name

    return run


def test_more_steps_move_the_end_of_a_schedule_and_are_said_to(trained, capfd):
    linear = "learner.schedule=linear"
    folder = trained("linear", linear, "trainer.steps=2")
    capfd.readouterr()
    trained("linear", linear, "trainer.steps=3")
    said = " ".join(capfd.readouterr().out.split())
    assert (
        "trainer.steps: 2 → 3 moves the end of learner.schedule=linear: step 3 is taken at" in said
    )
    rates = [line["learn/lr"] for line in metrics_of(folder) if "learn/lr" in line]
    assert rates == pytest.approx([1e-3, 1e-3 / 2, 1e-3 / 3])


def test_a_floor_is_resumed_exactly(trained, capfd):
    floor = ["method.entropy_floor=9", "method.entropy_coef_step=0.5", "method.entropy_coef_max=1"]
    folder = trained("floor", *floor, "trainer.steps=2")
    state = json.loads((folder / "checkpoints/latest/entropy.json").read_text())
    assert state == {"raised": 1.0, "is_below": True}
    trained("floor", *floor, "trainer.steps=4")
    assert "moves the end" not in capfd.readouterr().out
    whole = trained("whole", *floor, "trainer.steps=4")
    assert timeless(folder) == timeless(whole)
    found = [line["entropy/coef"] for line in metrics_of(whole) if "entropy/coef" in line]
    assert found == [0, 0.5, 1, 1]
    plain = trained("plain", "trainer.steps=4")
    entropy = [metrics_of(run)[-1]["policy/entropy"] for run in (whole, plain)]
    assert entropy[0] > entropy[1] and not math.isnan(sum(entropy))
    assert not any("entropy/coef" in line for line in metrics_of(plain))
