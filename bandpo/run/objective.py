"""The loss of a run: its method's, with the rollout correction of its configuration."""

from __future__ import annotations

import dataclasses

from hydra.utils import instantiate

from bandpo.config.schema import Config
from bandpo.loss import PolicyLoss
from bandpo.loss.correction import PRESETS


def loss_of(config: Config) -> PolicyLoss:
    """The loss of a configuration whose `method.correction` is not auto.

    Without a correction `rollout.lag` truncates importance ratios, which are then against the
    policy that sampled; with one they are against the learner's own, and the correction bounds.
    """
    loss: PolicyLoss = instantiate(config.method.loss)
    wanted = config.method.correction
    correction = PRESETS[wanted] if isinstance(wanted, str) else instantiate(wanted)
    if correction is not None:
        loss = dataclasses.replace(loss, correction=correction)
    if config.rollout.lag and loss.correction is None:
        loss = dataclasses.replace(loss, max_weight=config.rollout.max_weight)
    return loss
