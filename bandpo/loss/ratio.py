"""Importance ratios between the policy being trained and the policy of the rollout."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor

from bandpo.types import TokenBatch

# exp(20) is far outside every trust region, so the clamp changes no update; it keeps exp() finite
# and, like the clamp of the BandPO release, gives no gradient beyond it.
LOG_RATIO_LIMIT = 20.0
LARGEST_RATIO = math.exp(LOG_RATIO_LIMIT)


class Ratio(Protocol):
    """Maps a batch to the ratio [B, T] that the surrogate clips, masks or weighs."""

    def __call__(self, batch: TokenBatch) -> Tensor: ...


@dataclass(frozen=True)
class TokenRatio:
    """The ratio of each token's probabilities, r = π(a) / π_old(a), [B, T].

    Source: Proximal Policy Optimization Algorithms, section 3.
    """

    vanishes_at_zero_advantage: ClassVar[bool] = True

    def __call__(self, batch: TokenBatch) -> Tensor:
        return _exp(batch.logp - batch.old_logp)


@dataclass(frozen=True)
class SequenceRatio:
    """The length-normalised ratio of a whole sequence, repeated over its tokens, [B, T].

    s_i = (π(y_i | x) / π_old(y_i | x))^(1/|y_i|). With a mean over tokens as aggregate this is
    GSPO's objective, since every token of a sequence then has the same value.
    Source: Group Sequence Policy Optimization, section 4.1.
    """

    vanishes_at_zero_advantage: ClassVar[bool] = True

    def __call__(self, batch: TokenBatch) -> Tensor:
        lengths = batch.mask.sum(-1, keepdim=True).clamp(min=1)
        log_ratio = (batch.logp - batch.old_logp) * batch.mask
        return _exp(log_ratio.sum(-1, keepdim=True) / lengths).expand_as(batch.logp)


@dataclass(frozen=True)
class TrajectoryRatio:
    """The ratio of a whole sequence's probabilities, repeated over its tokens, [B, T].

    W_i = π(y_i | x) / π_old(y_i | x) = Π_t r_t: unbiased as an importance weight, and as wide as
    the sequence is long.
    Source: Tapered Off-Policy REINFORCE (arXiv 2503.14286).
    """

    vanishes_at_zero_advantage: ClassVar[bool] = True

    def __call__(self, batch: TokenBatch) -> Tensor:
        log_ratio = (batch.logp - batch.old_logp) * batch.mask
        return _exp(log_ratio.sum(-1, keepdim=True)).expand_as(batch.logp)


@dataclass(frozen=True)
class BehaviourRatio(TokenRatio):
    """The ratio of each token to the policy that sampled it, r = π(a) / μ(a), [B, T].

    With an engine of the learner's precision and samples of its weights, μ is π_old.
    Source: prime-rl's default loss, whose only other policy is the engine's.
    """

    vanishes_at_zero_advantage: ClassVar[bool] = True

    def __call__(self, batch: TokenBatch) -> Tensor:
        return _exp(batch.logp - behaviour_logp(batch))


def behaviour_logp(batch: TokenBatch) -> Tensor:
    """log μ of the sampling policy as the engine reported it, log π_old where it is unknown."""
    return batch.old_logp if batch.rollout_logp is None else batch.rollout_logp


def _exp(log_ratio: Tensor) -> Tensor:
    return log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
