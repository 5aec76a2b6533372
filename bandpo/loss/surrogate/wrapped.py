"""Surrogates around any other: a floor, a mask of sequences, a penalty."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bandpo.errors import UserError
from bandpo.loss.ratio import behaviour_logp
from bandpo.loss.surrogate.interface import Surrogate, SurrogateOutput, require_surrogate
from bandpo.loss.zero_advantage import vanishes_at_zero_advantage
from bandpo.types import TokenBatch


@dataclass(frozen=True)
class DualClip:
    """Any surrogate with a floor for negative advantages: max(objective, c·A) where A < 0.

    Source: Mastering Complex Control in MOBA Games with Deep Reinforcement Learning, section
    "Dual-clip PPO" (c = 3); BandPO's release uses c = 10. Raises UserError for c <= 1.
    """

    surrogate: Surrogate
    c: float = 10.0

    def __post_init__(self) -> None:
        require_surrogate(self, self.surrogate)
        if not self.c > 1:
            raise UserError(f"DualClip: c must exceed 1, got {self.c}.")

    @property
    def vanishes_at_zero_advantage(self) -> bool:
        """Whether the surrogate does."""
        return vanishes_at_zero_advantage(self.surrogate)

    def __call__(self, ratio: Tensor, batch: TokenBatch) -> SurrogateOutput:
        inner = self.surrogate(ratio, batch)
        floor = self.c * batch.advantages
        floored = (batch.advantages < 0) & (inner.objective < floor)
        return inner._replace(
            objective=torch.where(floored, floor, inner.objective),
            binding_high=inner.binding_high | floored,
        )


@dataclass(frozen=True)
class OffPolicySequenceMask:
    """Any surrogate, 0 for sequences that are off policy and have A < 0.

    Off policy is a sequence whose mean of log μ − log π over its tokens, an estimate of KL(μ ‖ π),
    exceeds the threshold [nats per token]; μ is the policy that sampled it (`behaviour_logp`).
    Source: DeepSeek-V3.2: Pushing the Frontier of Open Large Language Models (arXiv 2512.02556),
    "Off-Policy Sequence Masking". Raises UserError for a negative threshold.
    """

    surrogate: Surrogate
    threshold: float = 0.5

    def __post_init__(self) -> None:
        require_surrogate(self, self.surrogate)
        if not self.threshold >= 0:
            raise UserError(f"OffPolicySequenceMask: threshold must not be negative: {self}.")

    @property
    def vanishes_at_zero_advantage(self) -> bool:
        """Whether the surrogate does."""
        return vanishes_at_zero_advantage(self.surrogate)

    def __call__(self, ratio: Tensor, batch: TokenBatch) -> SurrogateOutput:
        inner = self.surrogate(ratio, batch)
        gap = (behaviour_logp(batch) - batch.logp).detach() * batch.mask
        lengths = batch.mask.sum(-1, keepdim=True).clamp(min=1)
        off_policy = gap.sum(-1, keepdim=True) / lengths > self.threshold
        masked = off_policy & (batch.advantages < 0)
        return inner._replace(
            objective=torch.where(masked, 0.0, inner.objective),
            binding_low=inner.binding_low | masked,
        )


@dataclass(frozen=True)
class SquaredLogRatio:
    """Any surrogate less a penalty on every token: objective − coefficient·(log r)².

    The gradient of the penalty, −2·coefficient·log r, pulls every ratio to 1, clipped or masked
    ones and those of samples without advantage too. In other notations the coefficient is β/2.
    Source: prime-rl's default loss (coefficient 1e-3 around a mask, against the behaviour policy);
    Kimi k1.5: Scaling Reinforcement Learning with LLMs (arXiv 2501.12599) has the same
    square for whole responses. Raises UserError unless the coefficient is positive.
    """

    vanishes_at_zero_advantage: ClassVar[bool] = False

    surrogate: Surrogate
    coefficient: float = 1e-3

    def __post_init__(self) -> None:
        require_surrogate(self, self.surrogate)
        if not self.coefficient > 0:
            raise UserError(f"SquaredLogRatio: coefficient must be positive: {self}.")

    def __call__(self, ratio: Tensor, batch: TokenBatch) -> SurrogateOutput:
        inner = self.surrogate(ratio, batch)
        penalty = self.coefficient * ratio.log().square()
        return inner._replace(objective=inner.objective - penalty)
