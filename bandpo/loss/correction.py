"""Importance weights for the gap between the policy that sampled and the learner's old policy.

Engine and learner compute the same policy with different kernels and precision, and with
`rollout.lag` the engine has weights one step older, so samples come from π_rollout while ratios are
taken against π_old; w = π_old/π_rollout corrects the expectation. docs/mismatch.md compares the
presets. Sources: Your Efficient RL Framework Secretly Brings You Off-Policy RL Training (truncated
importance sampling); When Speed Kills Stability (sequence level and masks); Batch Size-Invariance
for Policy Optimization (the decoupled objective, of three policies).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from bandpo.errors import UserError
from bandpo.loss.divergence import KL, Divergence, ReverseKL, binary_divergence
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
class GeometricMismatch:
    """w = (Π_t π_old(a_t)/π_rollout(a_t))^(1/T) over a sequence's T tokens: free of its length."""

    vanishes_at_zero_advantage: ClassVar[bool] = True

    def __call__(self, batch: TokenBatch) -> Tensor:
        lengths = batch.mask.sum(-1, keepdim=True).clamp(min=1)
        log_weight = _log_mismatch(batch).sum(-1, keepdim=True) / lengths
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
class Accept:
    """1 where low <= w <= high, else 0: rejection without weights.

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
        return ((weight >= self.low) & (weight <= self.high)).to(weight.dtype)


@dataclass(frozen=True)
class Discard:
    """w where low <= w <= high, else 0: samples with too large a mismatch are discarded.

    Raises UserError unless 0 <= low <= 1 <= high.
    """

    mismatch: Mismatch
    high: float = 2.0
    low: float = 0.0

    def __post_init__(self) -> None:
        Accept(self.mismatch, self.high, self.low)

    @property
    def vanishes_at_zero_advantage(self) -> bool:
        """Whether the mismatch does."""
        return vanishes_at_zero_advantage(self.mismatch)

    def __call__(self, batch: TokenBatch) -> Tensor:
        weight = self.mismatch(batch)
        return torch.where((weight >= self.low) & (weight <= self.high), weight, 0.0)


@dataclass(frozen=True)
class DiscardByDivergence:
    """w_t where no binary divergence of π_old from π_rollout at the token exceeds `limit`, else 0.

    Of the two events, the token and all others: a ratio that is harmless for a rare token is
    large for a likely one. With KL in both directions this is KPop (Ring-2.6's report). Raises
    UserError for limit <= 0.
    """

    limit: float
    divergences: tuple[Divergence, ...] = (KL(), ReverseKL())
    vanishes_at_zero_advantage: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.limit > 0:
            raise UserError(f"{self}: limit must be positive.")

    def __call__(self, batch: TokenBatch) -> Tensor:
        weight = TokenMismatch()(batch)
        assert batch.rollout_logp is not None  # TokenMismatch has read it
        old, rollout = batch.old_logp.detach(), batch.rollout_logp
        for divergence in self.divergences:
            kept = binary_divergence(divergence, old, rollout) <= self.limit
            weight = torch.where(kept, weight, 0.0)
        return weight


PRESETS: Mapping[str, Correction | None] = {
    "none": None,
    "token_tis": Truncate(TokenMismatch(), cap=2.0),
    "sequence_tis": Truncate(SequenceMismatch(), cap=2.0),
    "sequence_mask": Discard(SequenceMismatch(), high=3.0),
    "icepop": Discard(TokenMismatch(), high=5.0, low=0.5),
    "geometric_mask": Accept(GeometricMismatch(), high=1.002, low=0.999),
    "kpop": DiscardByDivergence(limit=2.0),
}
"""The corrections that `method.correction` names; docs/mismatch.md has their sources."""
