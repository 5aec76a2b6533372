"""M2PO: a limit to the second moment of the log-ratios of an optimizer batch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from bandpo.errors import UserError
from bandpo.loss.batchwise.rows import TokenRows
from bandpo.loss.bounds import Interval
from bandpo.loss.ratio import LOG_RATIO_LIMIT
from bandpo.loss.surrogate import Surrogate, SurrogateOutput, require_surrogate
from bandpo.loss.zero_advantage import vanishes_at_zero_advantage
from bandpo.types import TokenBatch


@dataclass(frozen=True)
class Unclipped:
    """r·A, without a trust region of its own: the interval holds every ratio."""

    vanishes_at_zero_advantage: ClassVar[bool] = True

    def __call__(self, ratio: Tensor, batch: TokenBatch) -> SurrogateOutput:
        none = torch.zeros_like(ratio, dtype=torch.bool)
        every = torch.full_like(batch.old_logp, math.exp(LOG_RATIO_LIMIT))
        interval = Interval(torch.zeros_like(every), every)
        return SurrogateOutput(ratio * batch.advantages, interval, none, none)


@dataclass(frozen=True)
class SecondMomentMask:
    """No gradient for the tokens that drive the second moment of the log-ratios over a threshold.

    Of all tokens of the optimizer batch those of the largest (log r)² are dropped until the mean of
    the others' (log r)² is below `threshold`; the others have the surrogate's objective. So no
    token with (log r)² below the threshold is dropped. Tied tokens are dropped together. The limit
    is exact (`TokenRows`) and lies between the last token kept and the first dropped.
    Source: Prosperity before Collapse: How Far Can Off-Policy RL Reach with Stale Data on LLMs?
    (arXiv 2510.01161), M2PO, in AReaL's form, which drops tokens whatever the advantage's sign
    (threshold 0.04). Raises UserError unless the threshold is positive, and ValueError for a batch
    whose statistic it was not given.
    """

    needs_batch_statistic: ClassVar[bool] = True
    statistic_of_ratios: ClassVar[bool] = True

    surrogate: Surrogate
    threshold: float = 0.04
    limit: float | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        require_surrogate(self, self.surrogate)
        if not self.threshold > 0:
            raise UserError(f"SecondMomentMask: threshold must be positive, got {self.threshold}.")

    @property
    def vanishes_at_zero_advantage(self) -> bool:
        """Whether the surrogate does."""
        return vanishes_at_zero_advantage(self.surrogate)

    def statistic(self, batch: TokenBatch) -> TokenRows:
        """The (log r)² of a micro-batch's tokens."""
        return TokenRows.of(batch.mask, (batch.logp - batch.old_logp).square())

    def with_statistic(self, statistic: TokenRows) -> SecondMomentMask:
        """The mask with the batch's limit of (log r)²."""
        return replace(self, limit=_limit(statistic.ascending()[:, 0], self.threshold))

    def __call__(self, ratio: Tensor, batch: TokenBatch) -> SurrogateOutput:
        if self.limit is None:
            raise ValueError("SecondMomentMask needs the statistic of its batch.")
        found = self.surrogate(ratio, batch)
        log_ratio = (batch.logp - batch.old_logp).detach()
        dropped = log_ratio.square() >= self.limit
        reach = min(math.sqrt(self.limit), LOG_RATIO_LIMIT)
        low, high = found.interval
        return found._replace(
            objective=torch.where(dropped, 0.0, found.objective),
            interval=Interval(low.clamp(min=math.exp(-reach)), high.clamp(max=math.exp(reach))),
            binding_high=found.binding_high | (dropped & (log_ratio > 0)),
            binding_low=found.binding_low | (dropped & (log_ratio < 0)),
        )


def _limit(squares: Tensor, threshold: float) -> float:
    """The value that all squares [N], ascending, must stay below for a mean below the threshold."""
    means = squares.cumsum(0) / torch.arange(1, len(squares) + 1)
    kept = int((means < threshold).sum())
    if kept == len(squares):
        return math.inf
    below = squares[squares < squares[kept]]
    return float((below[-1] + squares[kept]) / 2) if kept else threshold
