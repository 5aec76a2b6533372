"""The interface of surrogates: a ratio and a batch in, an objective per token out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from bandpo.loss.bounds import Bounds, Interval, misplaced, require_bounds
from bandpo.loss.ratio import LARGEST_RATIO
from bandpo.types import TokenBatch


class SurrogateOutput(NamedTuple):
    """A surrogate's result, all [B, T].

    objective     to be maximised, with gradient
    interval      the trust region that was used; `unbounded` where there is none
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


def binding(ratio: Tensor, batch: TokenBatch, interval: Interval) -> tuple[Tensor, Tensor]:
    """Where the ratio has left the interval on the side to which the advantage pushes it."""
    above = (ratio > interval.high) & (batch.advantages > 0)
    below = (ratio < interval.low) & (batch.advantages < 0)
    return above, below


@dataclass(frozen=True)
class Bounded:
    """The part that surrogates with bounds share. Raises UserError for what are no bounds."""

    bounds: Bounds

    def __post_init__(self) -> None:
        require_bounds(self, bounds=self.bounds)

    def interval(self, batch: TokenBatch) -> Interval:
        """The trust region of each token."""
        return self.bounds.for_batch(batch)(batch.old_logp)

    def judged(self, ratio: Tensor, batch: TokenBatch) -> tuple[Interval, Tensor, Tensor]:
        """The trust region, and where `binding` finds the ratio above and below it."""
        interval = self.interval(batch)
        return interval, *binding(ratio, batch, interval)


def nowhere(ratio: Tensor) -> Tensor:
    """False for every token."""
    return torch.zeros_like(ratio, dtype=torch.bool)


def unbounded(ratio: Tensor) -> Interval:
    """The interval of a surrogate without bounds: from 0 to the largest ratio there is."""
    return Interval(torch.zeros_like(ratio), torch.full_like(ratio, LARGEST_RATIO))


def by_sign(advantages: Tensor, positive: float, negative: float) -> Tensor:
    """One constant where A >= 0, another where A < 0, in the advantages' dtype."""
    above, below = (advantages.new_full((), value) for value in (positive, negative))
    return torch.where(advantages < 0, below, above)


def require_surrogate(owner: object, part: Any) -> None:
    """Raises UserError, which names the owner's class, for what is no surrogate."""
    if isinstance(part, Bounds):
        wanted = f"a surrogate, such as Clip({type(part).__name__}(…))"
        raise misplaced(owner, "surrogate", wanted, part)
    if isinstance(part, type) or not callable(part):
        raise misplaced(owner, "surrogate", "a surrogate, such as Clip(BandKL(0.05))", part)
