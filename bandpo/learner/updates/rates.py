"""The learning rate of each update: warm-up times schedule."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch.optim.lr_scheduler import LambdaLR

from bandpo.config.sections.learner import LearnerConfig

# The share of the way from the minimum up to `learner.lr` that is left at a progress from 0 to 1.
SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda progress: 1 - progress,
    "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,
    "wsd": lambda progress: 1 - math.sqrt(progress),
}


def warm_up(config: LearnerConfig, optimizer: Any) -> LambdaLR:
    """The learning rate's linear warm-up, over rollouts, over updates, or the slower of both."""
    return LambdaLR(optimizer, lambda update: warmed(config, update))


def warmed(config: LearnerConfig, update: int) -> float:
    """The share of `learner.lr` that the warm-up gives the update after `update` taken ones."""
    rollout = update // _per_rollout(config)
    return min(
        1.0,
        (rollout + 1) / (config.warmup_rollouts + 1),
        (update + 1) / (config.warmup_updates + 1),
    )


def scheduled(config: LearnerConfig, rollouts: int, rollout: int) -> float:
    """The share of `learner.lr` that `learner.schedule` leaves the updates of a rollout.

    `rollout` counts from 1 to `rollouts`, those of the run, whether their updates were taken or
    skipped. With the progress p, from 0 where the decay begins to 1 one rollout after the last,
    and m = `learner.min_lr_ratio`, it is

        m + (1 − m)·s,   s = 1 − p (linear), (1 + cos πp)/2 (cosine), 1 − √p (wsd).

    Linear and cosine begin where the warm-up ends; wsd (warm-up, stable, decay) with the last
    `learner.decay_share` of the rollouts. They are transformers' schedules but for the rate 0 of
    those' first step. Sources: SGDR: Stochastic Gradient Descent with Warm Restarts, equation 5
    (cosine); Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations, section 3
    (1 − √p, which beats a linear decay there).
    """
    if config.schedule == "constant":
        return 1.0
    warm = max(config.warmup_rollouts, math.ceil(config.warmup_updates / _per_rollout(config)))
    begin = warm
    if config.schedule == "wsd":
        begin = max(warm, rollouts - max(1, round(config.decay_share * rollouts)))
    progress = (rollout - 1 - begin) / max(1, rollouts - begin)
    shape = SHAPES[config.schedule](min(max(progress, 0.0), 1.0))
    return config.min_lr_ratio + (1 - config.min_lr_ratio) * shape


def planned_rate(config: LearnerConfig, rollouts: int, rollout: int) -> float:
    """The learning rate of a rollout's last update, where no update is skipped."""
    last = rollout * _per_rollout(config) - 1
    return config.lr * warmed(config, last) * scheduled(config, rollouts, rollout)


def moved_horizon(config: LearnerConfig, was: int, now: int, step: int) -> str | None:
    """A note on a run that resumes after `step` with another number of steps.

    None where that does not change its learning rates.
    """
    if config.schedule == "constant" or was == now:
        return None
    first = step + 1
    planned, rate = (planned_rate(config, steps, first) for steps in (was, now))
    return (
        f"trainer.steps: {was} → {now} moves the end of learner.schedule={config.schedule}: step "
        f"{first} is taken at a learning rate of {rate:.3g}, which was to be {planned:.3g}, and "
        f"the run is not the one that {now} steps from the start would have been"
    )


def _per_rollout(config: LearnerConfig) -> int:
    return config.updates_per_rollout * config.epochs_per_rollout
