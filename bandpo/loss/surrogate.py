"""Per-token objectives: ratio × advantage under a trust region."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from bandpo.errors import UserError
from bandpo.loss.bounds import Bounds, Fixed, Interval, misplaced, require_bounds
from bandpo.loss.zero_advantage import vanishes_at_zero_advantage
from bandpo.types import TokenBatch


class SurrogateOutput(NamedTuple):
    """A surrogate's result, all [B, T].

    objective     to be maximised, with gradient
    interval      the trust region that was used
    binding_high  bool: the token's gradient was removed since its ratio is too large
    binding_low   bool: the token's gradient was removed since its ratio is too small
    weight        the importance weight of the objective, None where it is the ratio itself
    """

    objective: Tensor
    interval: Interval
    binding_high: Tensor
    binding_low: Tensor
    weight: Tensor | None = None


class Surrogate(Protocol):
    """Maps ratios [B, T] to a per-token objective."""

    def __call__(self, ratio: Tensor, batch: TokenBatch) -> SurrogateOutput: ...


def _binding(ratio: Tensor, batch: TokenBatch, interval: Interval) -> tuple[Tensor, Tensor]:
    """Where the ratio has left the interval on the side to which the advantage pushes it."""
    above = (ratio > interval.high) & (batch.advantages > 0)
    below = (ratio < interval.low) & (batch.advantages < 0)
    return above, below


def require_surrogate(owner: object, part: Any) -> None:
    """Raises UserError, which names the owner's class, for what is no surrogate."""
    if isinstance(part, Bounds):
        wanted = f"a surrogate, such as Clip({type(part).__name__}(…))"
        raise misplaced(owner, "surrogate", wanted, part)
    if isinstance(part, type) or not callable(part):
        raise misplaced(owner, "surrogate", "a surrogate, such as Clip(BandKL(0.05))", part)


@dataclass(frozen=True)
class Clip:
    """The pessimistic clipped objective min(r·A, clip(r, low, high)·A).

    Source: Proximal Policy Optimization Algorithms, equation 7; BandPO, section "BandPO objective".
    """

    vanishes_at_zero_advantage: ClassVar[bool] = True

    bounds: Bounds

    def __post_init__(self) -> None:
        require_bounds(self, bounds=self.bounds)

    def __call__(self, ratio: Tensor, batch: TokenBatch) -> SurrogateOutput:
        interval = self.bounds.for_batch(batch)(batch.old_logp)
        above, below = _binding(ratio, batch, interval)
        clipped = torch.where(above, interval.high, torch.where(below, interval.low, ratio))
        return SurrogateOutput(clipped * batch.advantages, interval, above, below)


@dataclass(frozen=True)
class Mask:
    """The masked objective M·r·A: M = 0 where the ratio has left the interval outward, else 1.

    Its gradient is that of `Clip` with the same bounds. With BandTV or BandKL it is DPPO-Binary,
    whose mask asks whether the token's binary divergence exceeds delta.
    Source: Rethinking the Trust Region in LLM Reinforcement Learning, section on DPPO.
    """

    vanishes_at_zero_advantage: ClassVar[bool] = True

    bounds: Bounds

    def __post_init__(self) -> None:
        require_bounds(self, bounds=self.bounds)

    def __call__(self, ratio: Tensor, batch: TokenBatch) -> SurrogateOutput:
        interval = self.bounds.for_batch(batch)(batch.old_logp)
        above, below = _binding(ratio, batch, interval)
        kept = torch.where(above | below, 0.0, ratio)
        return SurrogateOutput(kept * batch.advantages, interval, above, below)


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
class TruncatedWeight:
    """CISPO: the importance weight is truncated, no token's gradient is: sg(clip(r))·A·log π.

    Source: MiniMax-M1: Scaling Test-Time Compute Efficiently with Lightning Attention, section
    3.1, equations 4 and 5 (no lower truncation there: eps_low = 1).
    """

    vanishes_at_zero_advantage: ClassVar[bool] = True

    bounds: Bounds

    def __post_init__(self) -> None:
        require_bounds(self, bounds=self.bounds)

    def __call__(self, ratio: Tensor, batch: TokenBatch) -> SurrogateOutput:
        interval = self.bounds.for_batch(batch)(batch.old_logp)
        weight = ratio.detach().clamp(interval.low, interval.high)
        none = torch.zeros_like(ratio, dtype=torch.bool)
        objective = weight * batch.advantages * batch.logp
        return SurrogateOutput(objective, interval, none, none, weight)


@dataclass(frozen=True)
class QuadraticPenalty:
    """CFPO: r·A − |A|·(r − 1)²/(2·eps), whose maximum in r is the clip bound 1 ± eps.

    The gradient vanishes at the bound and pulls back beyond it, where clipping would give none.
    Source: Clipping-Free Policy Optimization for Large Language Models. Raises UserError for
    eps <= 0.
    """

    vanishes_at_zero_advantage: ClassVar[bool] = True

    eps: float

    def __post_init__(self) -> None:
        if not self.eps > 0:
            raise UserError(f"{self}: eps must be positive.")

    def __call__(self, ratio: Tensor, batch: TokenBatch) -> SurrogateOutput:
        penalty = batch.advantages.abs() * (ratio - 1).square() / (2 * self.eps)
        interval = Fixed(min(self.eps, 1.0), self.eps)(batch.old_logp)
        none = torch.zeros_like(ratio, dtype=torch.bool)
        return SurrogateOutput(ratio * batch.advantages - penalty, interval, none, none)
