"""Surrogates with bounds for each token's ratio: past them the gradient ends or is scaled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bandpo.errors import UserError
from bandpo.loss.surrogate.interface import Bounded, SurrogateOutput
from bandpo.types import TokenBatch


@dataclass(frozen=True)
class Clip(Bounded):
    """The pessimistic clipped objective min(r·A, clip(r, low, high)·A).

    Source: Proximal Policy Optimization Algorithms, equation 7; BandPO, section "BandPO objective".
    """

    vanishes_at_zero_advantage: ClassVar[bool] = True

    def __call__(self, ratio: Tensor, batch: TokenBatch) -> SurrogateOutput:
        interval, above, below = self.judged(ratio, batch)
        clipped = torch.where(above, interval.high, torch.where(below, interval.low, ratio))
        return SurrogateOutput(clipped * batch.advantages, interval, above, below)


@dataclass(frozen=True)
class Mask(Bounded):
    """The masked objective M·r·A: M = 0 where the ratio has left the interval outward, else 1.

    Its gradient is that of `Clip` with the same bounds. With BandTV or BandKL it is DPPO-Binary,
    whose mask asks whether the token's binary divergence exceeds delta.
    Source: Rethinking the Trust Region in LLM Reinforcement Learning, section on DPPO.
    """

    vanishes_at_zero_advantage: ClassVar[bool] = True

    def __call__(self, ratio: Tensor, batch: TokenBatch) -> SurrogateOutput:
        interval, above, below = self.judged(ratio, batch)
        kept = torch.where(above | below, 0.0, ratio)
        return SurrogateOutput(kept * batch.advantages, interval, above, below)


@dataclass(frozen=True)
class GradientPreservingClip(Bounded):
    """CE-GPPO: past a bound the gradient stays, scaled: β·bound·r/sg(r)·A in place of bound·A.

        β_high·high·r/sg(r)·A where r > high and A > 0, β_low·low·r/sg(r)·A where r < low and
        A < 0, r·A elsewhere

    β_high = β_low = 0 is `Clip`'s gradient. β_high is for tokens that rise, which raises entropy
    where they are rare; β_low for tokens that fall, which lowers it there.
    Source: CE-GPPO: Controlling Entropy via Gradient-Preserving Clipping Policy Optimization in
    Reinforcement Learning (arXiv 2509.20712), whose β1 is beta_low and β2 beta_high. Public code
    adds 1e-8 to sg(r), which changes nothing above float32's rounding. Raises UserError for a
    negative β.
    """

    vanishes_at_zero_advantage: ClassVar[bool] = True

    beta_low: float = 0.75
    beta_high: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.beta_low >= 0 and self.beta_high >= 0):
            raise UserError(f"{self}: beta_low and beta_high must not be negative.")

    def __call__(self, ratio: Tensor, batch: TokenBatch) -> SurrogateOutput:
        interval, above, below = self.judged(ratio, batch)
        constant = ratio.detach()
        weight = torch.where(above, self.beta_high * interval.high, constant)
        weight = torch.where(below, self.beta_low * interval.low, weight)
        scaled = torch.where(above | below, weight * (ratio / constant), ratio)
        removed = weight == 0
        return SurrogateOutput(
            scaled * batch.advantages, interval, above & removed, below & removed, weight
        )


@dataclass(frozen=True)
class GeometricMean(Bounded):
    """GMPO: the geometric mean of a sequence's token ratios, each clipped outward: s·A.

        s = exp(1/|y| Σ_t log clip_A(r_t)),
        clip_A(r) = min(r, high) for A > 0, max(r, low) for A < 0

    A clipped token has no gradient, every other s·A/|y|; with a mean over sequences of the mean
    over tokens this is GMPO's objective. GMPO's own bounds are `FixedLog(0.4, 0.4)`; any others
    will do.
    Source: Geometric-Mean Policy Optimization (arXiv 2507.20673).
    """

    vanishes_at_zero_advantage: ClassVar[bool] = True

    def __call__(self, ratio: Tensor, batch: TokenBatch) -> SurrogateOutput:
        interval, above, below = self.judged(ratio, batch)
        clipped = torch.where(above, interval.high, torch.where(below, interval.low, ratio))
        lengths = batch.mask.sum(-1, keepdim=True).clamp(min=1)
        mean = (clipped.log() * batch.mask).sum(-1, keepdim=True) / lengths
        weight = mean.exp().expand_as(ratio)
        return SurrogateOutput(weight * batch.advantages, interval, above, below, weight.detach())
