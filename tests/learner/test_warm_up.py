"""The learning rate of each update while it warms up."""

import pytest
import torch

from bandpo.config.composition import compose
from bandpo.config.schema import Config
from bandpo.config.sections.learner import LearnerConfig
from bandpo.learner.updates.rates import warm_up


def rates(config: LearnerConfig, updates: int) -> list[float]:
    """Of so many updates, in turn."""
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=config.lr)
    schedule, found = warm_up(config, optimizer), []
    for _ in range(updates):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_without_warm_up_the_learning_rate_is_constant():
    assert rates(LearnerConfig(lr=0.5), 5) == [0.5] * 5


@pytest.mark.parametrize(("updates", "epochs"), [(1, 1), (4, 1), (2, 3)])
def test_rollouts_are_counted_whatever_the_number_of_their_updates(updates, epochs):
    config = LearnerConfig(
        lr=1, warmup_rollouts=3, updates_per_rollout=updates, epochs_per_rollout=epochs
    )
    every = updates * epochs
    expected = [share for share in (0.25, 0.5, 0.75, 1, 1) for _ in range(every)]
    assert rates(config, 5 * every) == pytest.approx(expected)


def test_updates_are_counted_as_such():
    config = LearnerConfig(lr=1, warmup_updates=3, updates_per_rollout=4)
    assert rates(config, 6) == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])


def test_dapo_warms_up_over_ten_rollouts_of_the_release():
    overrides = ["method=dapo", "+protocol=release16", "model.path=a/model"]
    config = compose("train", [*overrides, "rollout.max_tokens=4608"], Config).learner
    found = rates(config, 50)  # four updates a rollout
    assert found[0] == found[3] == pytest.approx(1e-6 / 11)
    assert found[39] == pytest.approx(1e-5 / 11) and found[40] == found[-1] == 1e-6
