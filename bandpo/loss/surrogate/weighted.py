"""Surrogates sg(w)·A·log π: the importance weight is a constant, no token's gradient ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from bandpo.errors import UserError
from bandpo.loss.surrogate.interface import Bounded, SurrogateOutput, by_sign, nowhere, unbounded
from bandpo.types import TokenBatch


@dataclass(frozen=True)
class TruncatedWeight(Bounded):
    """CISPO: the importance weight is truncated, no token's gradient is: sg(clip(r))·A·log π.

    With `TrajectoryRatio` and `BySign` bounds of [1, 1] for A > 0 and [0, 1] for A < 0 it is TOPR.
    Source: MiniMax-M1: Scaling Test-Time Compute Efficiently with Lightning Attention, section
    3.1, equations 4 and 5 (no lower truncation there: eps_low = 1).
    """

    vanishes_at_zero_advantage: ClassVar[bool] = True

    def __call__(self, ratio: Tensor, batch: TokenBatch) -> SurrogateOutput:
        interval = self.interval(batch)
        weight = ratio.detach().clamp(interval.low, interval.high)
        objective = weight * batch.advantages * batch.logp
        return SurrogateOutput(objective, interval, nowhere(ratio), nowhere(ratio), weight)


@dataclass(frozen=True)
class GammaWeight:
    """VESPO: sg(φ(W))·A·log π with φ(W) = exp(λ + k·log W − λ·W), the shape of a gamma density.

    φ(1) = 1, its maximum lies at W = k/λ, and it falls to 0 on both sides. `positive` is (k, λ) for
    A >= 0, `negative` for A < 0. W is the ratio; VESPO's is that of a whole sequence
    (`TrajectoryRatio`).
    Source: VESPO: Variational Sequence-Level Soft Policy Optimization (arXiv 2602.10693). TRL
    clamps log W to at least log 1e-8, here it is −20 as everywhere: φ is below 1e-12 at either.
    Raises UserError unless k >= 0 and λ > 0.
    """

    vanishes_at_zero_advantage: ClassVar[bool] = True

    positive: Sequence[float] = (2.0, 3.0)
    negative: Sequence[float] = (3.0, 2.0)

    def __post_init__(self) -> None:
        for name in ("positive", "negative"):
            pair = getattr(self, name)
            if isinstance(pair, str) or len(pair) != 2 or not (pair[0] >= 0 and pair[1] > 0):
                raise UserError(f"GammaWeight: {name} must be (k, λ), k >= 0 and λ > 0, not {pair}")
            object.__setattr__(self, name, tuple(map(float, pair)))

    def __call__(self, ratio: Tensor, batch: TokenBatch) -> SurrogateOutput:
        w = ratio.detach()
        k, decay = (
            by_sign(batch.advantages, above, below)
            for above, below in zip(self.positive, self.negative, strict=True)
        )
        weight = (decay + k * w.log() - decay * w).exp()
        objective = weight * batch.advantages * batch.logp
        return SurrogateOutput(objective, unbounded(ratio), nowhere(ratio), nowhere(ratio), weight)
