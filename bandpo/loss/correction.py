"""Importance weights for the gap between the sampling engine and the learner's old policy.

Engine and learner compute the same policy with different kernels and precision, so samples come
from π_rollout while ratios are taken against π_old; w = π_old/π_rollout corrects the expectation.
Source: Your Efficient RL Framework Secretly Brings You Off-Policy RL Training (truncated
importance sampling); When Speed Kills Stability (sequence level and masks).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from bandpo.errors import UserError
from bandpo.loss.ratio import LOG_RATIO_LIMIT
from bandpo.loss.zero_advantage import vanishes_at_zero_advantage
from bandpo.types import TokenBatch


class Mismatch(Protocol):
    """Maps a batch to w = π_old/π_rollout [B, T], without gradient."""

    def __call__(self, batch: TokenBatch) -> Tensor: ...


class Correction(Protocol):
    """Maps a batch to the factor [B, T] of each token's objective, without gradient."""

    def __call__(self, batch: TokenBatch) -> Tensor: ...


def _log_mismatch(batch: TokenBatch) -> Tensor:
    if batch.rollout_logp is None:
        raise ValueError("A rollout correction needs TokenBatch.rollout_logp.")
    return (batch.old_logp - batch.rollout_logp).detach() * batch.mask


@dataclass(frozen=True)
class TokenMismatch:
    """w_t = π_old(a_t)/π_rollout(a_t), each token by itself: biased, of low variance."""

    vanishes_at_zero_advantage: ClassVar[bool] = True

    def __call__(self, batch: TokenBatch) -> Tensor:
        return _log_mismatch(batch).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()


@dataclass(frozen=True)
class SequenceMismatch:
    """w = Π_t π_old(a_t)/π_rollout(a_t), repeated over the sequence: unbiased before truncation."""

    vanishes_at_zero_advantage: ClassVar[bool] = True

    def __call__(self, batch: TokenBatch) -> Tensor:
        log_weight = _log_mismatch(batch).sum(-1, keepdim=True)
        return log_weight.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp().expand_as(batch.mask)


@dataclass(frozen=True)
class Truncate:
    """min(w, cap). Raises UserError for cap <= 0."""

    mismatch: Mismatch
    cap: float = 2.0

    def __post_init__(self) -> None:
        if not self.cap > 0:
            raise UserError(f"{self}: cap must be positive.")

    @property
    def vanishes_at_zero_advantage(self) -> bool:
        """Whether the mismatch does."""
        return vanishes_at_zero_advantage(self.mismatch)

    def __call__(self, batch: TokenBatch) -> Tensor:
        return self.mismatch(batch).clamp(max=self.cap)


@dataclass(frozen=True)
class Discard:
    """w where low <= w <= high, else 0: samples with too large a mismatch are discarded.

    Raises UserError unless 0 <= low <= 1 <= high.
    """

    mismatch: Mismatch
    high: float = 2.0
    low: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.low <= 1 <= self.high:
            raise UserError(f"{self}: needs 0 <= low <= 1 <= high.")

    @property
    def vanishes_at_zero_advantage(self) -> bool:
        """Whether the mismatch does."""
        return vanishes_at_zero_advantage(self.mismatch)

    def __call__(self, batch: TokenBatch) -> Tensor:
        weight = self.mismatch(batch)
        return torch.where((weight >= self.low) & (weight <= self.high), weight, 0.0)
