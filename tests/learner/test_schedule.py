"""The learning rate's schedule: closed forms, transformers' values, and what a learner takes."""

import math
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from transformers.optimization import get_scheduler, get_wsd_schedule

from bandpo.cli import main
from bandpo.config.sections.learner import LearnerConfig
from bandpo.learner.learner import DeepSpeedLearner
from bandpo.learner.updates.rates import moved_horizon, planned_rate, scheduled

WORKER = Path(__file__).parent / "rates_worker.py"


def rates(steps: int, **settings) -> list[float]:
    config = LearnerConfig(lr=1.0, **settings)
    return [planned_rate(config, steps, step) for step in range(1, steps + 1)]


def test_the_closed_forms():
    assert rates(5, schedule="constant", warmup_rollouts=1) == [0.5, 1, 1, 1, 1]
    assert rates(5, schedule="linear") == pytest.approx([1, 0.8, 0.6, 0.4, 0.2])
    assert rates(5, schedule="linear", warmup_rollouts=1) == pytest.approx(
        [0.5, 1, 0.75, 0.5, 0.25]
    )
    assert rates(4, schedule="linear", min_lr_ratio=0.2) == pytest.approx([1, 0.8, 0.6, 0.4])
    half = math.sqrt(2) / 4
    assert rates(4, schedule="cosine") == pytest.approx([1, 0.5 + half, 0.5, 0.5 - half])
    falls = [1, 1 - 0.5, 1 - math.sqrt(0.5), 1 - math.sqrt(0.75)]
    assert rates(8, schedule="wsd", decay_share=0.5) == pytest.approx([1, 1, 1, 1, *falls])
    assert rates(8, schedule="wsd", decay_share=1.0, min_lr_ratio=1.0) == [1] * 8


def test_the_same_rate_for_all_updates_of_a_rollout_and_a_warm_up_that_ends_within_one():
    config = LearnerConfig(lr=1, schedule="linear", warmup_updates=3, updates_per_rollout=4)
    assert [scheduled(config, 5, step) for step in range(1, 6)] == [1, 1, 0.75, 0.5, 0.25]


@pytest.mark.parametrize("steps", [7, 40])
@pytest.mark.parametrize("warm", [0, 3])
@pytest.mark.parametrize(
    ("settings", "name", "specific"),
    [
        ({"schedule": "linear"}, "linear", {}),
        ({"schedule": "cosine"}, "cosine", {}),
        (
            {"schedule": "cosine", "min_lr_ratio": 0.1},
            "cosine_with_min_lr",
            {"min_lr_rate": 0.1},
        ),
        ({"schedule": "wsd", "decay_share": 0.25, "min_lr_ratio": 0.1}, "wsd", {}),
        ({"schedule": "wsd", "decay_share": 0.25}, "wsd", {}),
    ],
)
def test_they_are_transformers_schedules_without_the_step_of_rate_0(
    settings, name, specific, warm, steps
):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    if name == "wsd":
        theirs = get_wsd_schedule(
            optimizer,
            num_warmup_steps=warm + 1,
            num_decay_steps=round(0.25 * steps),
            num_training_steps=steps + 1,
            decay_type="1-sqrt",
            min_lr_ratio=settings.get("min_lr_ratio", 0),
        )
    else:
        theirs = get_scheduler(name, optimizer, warm + 1, steps + 1, specific)
    share = theirs.lr_lambdas[0]
    expected = [share(step) for step in range(steps + 1)]
    assert expected[0] in (0, settings.get("min_lr_ratio", 0))
    found = rates(steps, warmup_rollouts=warm, **settings)
    # Their warm-up to a minimum begins from it; ours, as without one, from 0.
    assert found[warm:] == pytest.approx(expected[warm + 1 :])
    if "min_lr_ratio" not in settings or name != "wsd":
        assert found == pytest.approx(expected[1:])


def test_a_longer_warm_up_than_the_run_is_no_division_by_zero():
    assert rates(3, schedule="cosine", warmup_rollouts=5) == pytest.approx([1 / 6, 2 / 6, 3 / 6])
    assert rates(1, schedule="wsd") == rates(1, schedule="linear") == [1]


@pytest.mark.parametrize("wrong", [{"min_lr_ratio": 1.5}, {"decay_share": 0.0}, {"schedule": "x"}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValidationError):
        LearnerConfig(lr=1e-3, **wrong)


def test_another_horizon_is_said_with_the_rates_that_it_moves():
    config = LearnerConfig(lr=1e-3, schedule="linear")
    note = moved_horizon(config, was=10, now=20, step=8)
    assert "trainer.steps: 10 → 20" in note and "step 9" in note
    assert "of 0.0006" in note and "to be 0.0002" in note
    assert moved_horizon(config, was=10, now=10, step=8) is None
    assert moved_horizon(LearnerConfig(lr=1e-3), was=10, now=20, step=8) is None


def test_the_plan_shows_first_middle_and_last_rate(capsys):
    assert main(["plan", "learner.schedule=linear", "learner.lr=1e-3", "trainer.steps=40"]) == 0
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "linear: 0.001, 0.000525, 2.5e-05 at step(s) 1, 20, 40" in said


def test_a_learner_is_told_how_long_the_run_is():
    config = LearnerConfig(lr=1e-3, schedule="linear")
    with pytest.raises(ValueError, match="rollouts of the run"):
        DeepSpeedLearner(config, None, "", None, None)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_learner_takes_the_rate_of_the_step(launch, untrained, tmp_path, ranks):
    """Also of one after an update that was skipped, and after a checkpoint."""
    (found,) = launch(WORKER, ranks, str(untrained()), str(tmp_path))
    decay = [(1 + math.cos(math.pi * max(0, step - 2) / 7)) / 2 for step in range(1, 7)]
    # The warm-up counts updates that were taken, two a rollout; the fourth is not the third's.
    shares = [0.5, 0.5, 1, 1, *[decay[2]] * 2, *[decay[3]] * 2, *[decay[4]] * 2, *[decay[5]] * 2]
    for stage in "0123":
        result = found[stage]
        assert result["steps"] == pytest.approx([1e-2, 1e-2 * 3 / 8], rel=1e-3), stage
        assert [lr for lr, _ in result["updates"]] == pytest.approx([1e-2 * s for s in shares])
        assert [i for i, (_, skipped) in enumerate(result["updates"]) if skipped] == [5]
        assert result["again"] == [lr for lr, _ in result["updates"]][6:]
        assert result["same"], stage
