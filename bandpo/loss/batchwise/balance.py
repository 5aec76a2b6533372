"""BAPO: bounds that widen until positive tokens have their share of the gradient."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from bandpo.errors import UserError
from bandpo.loss.bounds import Bounds, Fixed, Interval
from bandpo.loss.ratio import TokenRatio
from bandpo.loss.statistic import Total
from bandpo.types import TokenBatch


@dataclass(frozen=True)
class Balanced(Bounds):
    """BAPO: the first of a series of intervals in which positive tokens weigh enough.

    The series begins at [low, high]; `high` rises by high_step up to highest_high, then `low` by
    low_step up to highest_low. The first is taken where P/(P + N) >= share, P = Σ r·A over the
    batch's tokens with A > 0 and r <= high, N = Σ r·|A| over those with A < 0 and r >= low: the
    gradients that clipping leaves. Without the statistic of a batch they are the first interval.
    Source: BAPO: Stabilizing Off-Policy Reinforcement Learning for LLMs via Balanced Policy
    Optimization with Adaptive Clipping (arXiv 2510.18927), algorithm 1; the defaults are the
    paper's. The authors' code differs: it raises `low` first, and counts a clipped token with its
    constant max(r, low)·|A|, by which a higher `low` would only add to N. Raises UserError unless
    0 <= low <= highest_low <= 1 <= high <= highest_high, steps are positive and 0 <= share <= 1.
    """

    needs_batch_statistic: ClassVar[bool] = True
    statistic_of_ratios: ClassVar[bool] = True

    share: float = 0.4
    low: float = 0.6
    highest_low: float = 0.9
    low_step: float = 0.02
    high: float = 1.2
    highest_high: float = 3.0
    high_step: float = 0.05

    def __post_init__(self) -> None:
        ordered = 0 <= self.low <= self.highest_low <= 1 <= self.high <= self.highest_high
        if not (ordered and min(self.low_step, self.high_step) > 0 and 0 <= self.share <= 1):
            raise UserError(
                f"{self}: needs 0 <= low <= highest_low <= 1 <= high <= highest_high, positive "
                "steps and 0 <= share <= 1."
            )

    @property
    def lows(self) -> list[float]:
        """The lower bounds that it may take."""
        return _series(self.low, self.highest_low, self.low_step)

    @property
    def highs(self) -> list[float]:
        """The upper bounds that it may take."""
        return _series(self.high, self.highest_high, self.high_step)

    @torch.no_grad()
    def statistic(self, batch: TokenBatch) -> Total:
        """P for each of `highs`, then N for each of `lows`."""
        ratio = TokenRatio()(batch)
        mass = ratio * batch.advantages
        if batch.weight is not None:
            mass = mass * batch.weight
        mass = mass.double()
        positive = [mass[(mass > 0) & (ratio <= high)].sum() for high in self.highs]
        negative = [-mass[(mass < 0) & (ratio >= low)].sum() for low in self.lows]
        return Total(torch.stack([*positive, *negative]))

    def with_statistic(self, statistic: Total) -> Balanced:
        """The bounds that stay at the interval taken."""
        highs, lows, sums = self.highs, self.lows, statistic.value.tolist()
        positive, negative = sums[: len(highs)], sums[len(highs) :]
        series = [(0, k) for k in range(len(highs))]
        series += [(k, len(highs) - 1) for k in range(1, len(lows))]
        enough = (
            (i, j) for i, j in series if positive[j] >= self.share * (positive[j] + negative[i])
        )
        i, j = next(enough, series[-1])
        return replace(self, low=lows[i], high=highs[j])

    def __call__(self, old_logp: Tensor) -> Interval:
        return Fixed(1 - self.low, self.high - 1)(old_logp)


def _series(start: float, end: float, step: float) -> list[float]:
    """start, start + step, … as far as `end`, whatever the rounding of their difference."""
    count = int((end - start) / step + 1e-9)
    return [min(start + k * step, end) for k in range(count + 1)]
