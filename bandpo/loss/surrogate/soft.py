"""Surrogates whose gradient fades or turns as the ratio leaves 1, without a bound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from bandpo.errors import UserError
from bandpo.loss.bounds import Fixed
from bandpo.loss.surrogate.interface import SurrogateOutput, by_sign, nowhere, unbounded
from bandpo.types import TokenBatch


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
        objective = ratio * batch.advantages - penalty
        return SurrogateOutput(objective, interval, nowhere(ratio), nowhere(ratio))


@dataclass(frozen=True)
class SoftGate:
    """SAPO: (4/τ)·σ(τ·(r − 1))·A, a sigmoid in place of the clip.

    Its gradient is 4·σ·(1 − σ)·r·A: all of r·A at r = 1, fading on both sides, the faster the
    larger the temperature τ, which is `tau_positive` for A > 0 and `tau_negative` for A < 0.
    Source: Soft Adaptive Policy Optimization (arXiv 2511.20347). Raises UserError for
    τ <= 0.
    """

    vanishes_at_zero_advantage: ClassVar[bool] = True

    tau_positive: float = 1.0
    tau_negative: float = 1.05

    def __post_init__(self) -> None:
        if not (self.tau_positive > 0 and self.tau_negative > 0):
            raise UserError(f"{self}: tau_positive and tau_negative must be positive.")

    def __call__(self, ratio: Tensor, batch: TokenBatch) -> SurrogateOutput:
        tau = by_sign(batch.advantages, self.tau_positive, self.tau_negative)
        gate = (tau * (ratio - 1)).sigmoid()
        share = 4 * gate * (1 - gate)
        return SurrogateOutput(
            4 / tau * gate * batch.advantages,
            unbounded(ratio),
            nowhere(ratio),
            nowhere(ratio),
            (share * ratio).detach(),
        )
