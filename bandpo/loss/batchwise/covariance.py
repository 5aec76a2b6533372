"""Clip-Cov and KL-Cov: the few tokens that cost most entropy, by a covariance over the batch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from bandpo.errors import UserError
from bandpo.loss.batchwise.rows import TokenRows
from bandpo.loss.ratio import LOG_RATIO_LIMIT, TokenRatio
from bandpo.loss.statistic import asking_parts
from bandpo.loss.surrogate import Surrogate, SurrogateOutput, require_surrogate
from bandpo.loss.zero_advantage import vanishes_at_zero_advantage
from bandpo.types import TokenBatch

DRAWS = 1 << 24
"""Values of a draw: as many whole numbers as float32 tells apart."""


@dataclass(frozen=True)
class Centre:
    """The means of advantages and old log-probabilities over an optimizer batch."""

    advantage: float
    old_logp: float

    @classmethod
    def of(cls, rows: Tensor) -> Centre:
        """That of rows [N, ≥ 2] that begin with the two."""
        return cls(*rows[:, :2].mean(0).tolist())

    def covariance(self, advantage: Tensor, old_logp: Tensor) -> Tensor:
        """Each token's share (A − mean A)·(log π_old − mean log π_old), in float64."""
        return (advantage.double() - self.advantage) * (old_logp.double() - self.old_logp)


def _check(part: Any) -> None:
    """Raises UserError for a surrogate or a share that the part cannot have."""
    require_surrogate(part, part.surrogate)
    name = type(part).__name__
    if asking_parts(part.surrogate):
        raise UserError(
            f"{name}: the surrogate asks for a statistic of the batch itself; put {name} inside it"
        )
    if not 0 < part.share <= 1:
        raise UserError(f"{name}: share must lie in (0, 1], got {part.share}.")


def draws(batch: TokenBatch) -> Tensor:
    """A whole number below `DRAWS` per token, [B, T], from its step, sample and place in that.

    A mixing function of 32 bits, so that no generator's state or order of samples matters. Raises
    ValueError for a batch without `number`.
    """
    if batch.number is None:
        raise ValueError("ClipCovariance needs TokenBatch.number, the samples' numbers.")
    place = torch.arange(batch.number.shape[-1], device=batch.number.device)
    value = batch.number.long() * 0x9E3779B1 + place * 0x85EBCA77 + batch.step * 0xC2B2AE3D
    for factor, shift in ((0x2C1B3C6D, 15), (0x297A2D39, 12), (0x1B56C4E9, 14)):
        value = (value ^ (value >> shift)) & 0xFFFFFFFF
        value = (value * factor) & 0xFFFFFFFF
    return ((value ^ (value >> 16)) >> 8).to(batch.number.dtype)


@dataclass(frozen=True)
class ClipCovariance:
    """Clip-Cov: no gradient for some tokens of high covariance, chosen at random.

    Candidates are tokens that the surrogate has not clipped, with low < cov < high, where
    cov = (A − mean A)·(log π_old − mean log π_old), means over the optimizer batch. Of N tokens
    max(⌊share·N⌋, 1) are chosen, those of the smallest `draws`: the same however the batch was
    split.
    Source: The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models
    (arXiv 2505.22617); verl's `clip_cov` (low 1, high 5, share 2e-4). That takes the policy being
    trained instead of the old one, so its choice differs after the first update on a rollout; and
    it chooses in each micro-batch by itself. Raises UserError for numbers out of range and for a
    surrogate that asks for a statistic too, and ValueError for a batch whose own it was not given.
    """

    needs_batch_statistic: ClassVar[bool] = True

    surrogate: Surrogate
    low: float = 1.0
    high: float = 5.0
    share: float = 2e-4
    centre: Centre | None = field(default=None, repr=False)
    limit: float = field(default=-1.0, repr=False)

    def __post_init__(self) -> None:
        _check(self)
        if not self.low < self.high:
            raise UserError(f"ClipCovariance: needs low < high, got {self.low} and {self.high}.")

    @property
    def vanishes_at_zero_advantage(self) -> bool:
        """Whether the surrogate does."""
        return vanishes_at_zero_advantage(self.surrogate)

    @torch.no_grad()
    def statistic(self, batch: TokenBatch) -> TokenRows:
        """Of each token advantage, old log-probability, draw, and whether it is clipped already."""
        found = self.surrogate(TokenRatio()(batch), batch)
        clipped = (found.binding_high | found.binding_low).to(batch.mask.dtype)
        return TokenRows.of(batch.mask, batch.advantages, batch.old_logp, draws(batch), clipped)

    def with_statistic(self, statistic: TokenRows) -> ClipCovariance:
        """The rule with the batch's means, and the largest draw of a chosen token."""
        rows = statistic.ascending()
        centre, (advantage, old_logp, drawn, clipped) = Centre.of(rows), rows.unbind(-1)
        covariance = centre.covariance(advantage, old_logp)
        drawn = drawn[self._candidates(covariance) & (clipped == 0)].sort().values
        count = min(max(int(self.share * len(rows)), 1), len(drawn))
        return replace(self, centre=centre, limit=float(drawn[count - 1]) if count else -1.0)

    def _candidates(self, covariance: Tensor) -> Tensor:
        return (covariance > self.low) & (covariance < self.high)

    def __call__(self, ratio: Tensor, batch: TokenBatch) -> SurrogateOutput:
        if self.centre is None:
            raise ValueError("ClipCovariance needs the statistic of its batch.")
        found = self.surrogate(ratio, batch)
        covariance = self.centre.covariance(batch.advantages, batch.old_logp)
        chosen = self._candidates(covariance) & (draws(batch) <= self.limit)
        return found._replace(objective=torch.where(chosen, 0.0, found.objective))


@dataclass(frozen=True)
class KLCovariance:
    """KL-Cov: a penalty coefficient·|log r| on the share of tokens with the highest covariance.

    cov = (A − mean A)·(log π_old − mean log π_old), means over the optimizer batch; of N tokens the
    max(⌊share·N⌋, 1) highest are chosen as long as they are positive, tied ones together. The limit
    is exact (`TokenRows`) and lies between the last token chosen and the next one.
    Source: The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models
    (arXiv 2505.22617); verl's `kl_cov` (share 2e-4, coefficient 1), which again takes
    the policy being trained and one micro-batch at a time. Raises UserError for numbers out of
    range and for a surrogate that asks for a statistic too, and ValueError for a batch whose own it
    was not given.
    """

    needs_batch_statistic: ClassVar[bool] = True
    # A sample of advantage 0 may be penalised.
    vanishes_at_zero_advantage: ClassVar[bool] = False

    surrogate: Surrogate
    coefficient: float = 1.0
    share: float = 2e-4
    centre: Centre | None = field(default=None, repr=False)
    limit: float = field(default=0.0, repr=False)

    def __post_init__(self) -> None:
        _check(self)
        if not self.coefficient > 0:
            raise UserError(f"KLCovariance: coefficient must be positive, got {self.coefficient}.")

    def statistic(self, batch: TokenBatch) -> TokenRows:
        """Advantage and old log-probability of each token."""
        return TokenRows.of(batch.mask, batch.advantages, batch.old_logp)

    def with_statistic(self, statistic: TokenRows) -> KLCovariance:
        """The rule with the batch's means, and the covariance that chosen tokens exceed."""
        rows = statistic.ascending()
        centre = Centre.of(rows)
        covariance = centre.covariance(*rows.unbind(-1)).sort(descending=True).values
        least = covariance[max(int(self.share * len(rows)), 1) - 1]
        lower = covariance[covariance < least]
        limit = max(float((least + lower[0]) / 2), 0.0) if len(lower) else 0.0
        return replace(self, centre=centre, limit=limit)

    def __call__(self, ratio: Tensor, batch: TokenBatch) -> SurrogateOutput:
        if self.centre is None:
            raise ValueError("KLCovariance needs the statistic of its batch.")
        found = self.surrogate(ratio, batch)
        log_ratio = (batch.logp - batch.old_logp).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
        chosen = self.centre.covariance(batch.advantages, batch.old_logp) > self.limit
        penalty = torch.where(chosen, self.coefficient * log_ratio.abs(), 0.0)
        return found._replace(objective=found.objective - penalty)
