"""A surrogate whose trust region is each query's own, by the dual of a KL constraint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bandpo.loss.bounds import Interval
from bandpo.loss.ratio import LOG_RATIO_LIMIT
from bandpo.loss.surrogate import SurrogateOutput
from bandpo.types import TokenBatch


@dataclass(frozen=True)
class QueryKL:
    """r·(A + λ − λ·log r), whose maximum in r is at log r = A/λ, the query's optimal policy.

    Under KL(π ‖ π_old) <= δ the mean reward of a query q is largest for π ∝ π_old·e^(R/λ), that is
    log r = A/λ with A = R − λ·log mean exp(R/λ), and λ(q) solves the dual problem
    (`bandpo.advantage.query_kl_advantages`). The gradient is r·(A − λ·log r): A on policy, 0 at the
    optimum, and back to it beyond. The interval shows e^(±|A|/λ). Samples of advantage 0, such as
    those of a group of equal rewards, take no part.
    In the spirit of QUATRO (arXiv 2602.04620); the derivation is ours. Raises ValueError for a
    batch without `dual`.
    """

    vanishes_at_zero_advantage: ClassVar[bool] = True

    def __call__(self, ratio: Tensor, batch: TokenBatch) -> SurrogateOutput:
        if batch.dual is None:
            raise ValueError("QueryKL needs TokenBatch.dual, which query_kl_advantages gives.")
        advantages, dual = batch.advantages, batch.dual
        learns = advantages != 0
        objective = ratio * (advantages + dual - dual * ratio.log())
        optimum = advantages.abs() / dual.clamp(min=torch.finfo(dual.dtype).tiny)
        reach = torch.where(learns, optimum, 0.0).clamp(max=LOG_RATIO_LIMIT)
        none = torch.zeros_like(learns)
        interval = Interval((-reach).exp(), reach.exp())
        return SurrogateOutput(torch.where(learns, objective, 0.0), interval, none, none)
