"""Importance ratios between the policy being trained and the policy of the rollout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor

from bandpo.types import TokenBatch

# exp(20) is far outside every trust region, so the clamp changes no update; it keeps exp() finite
# and, like the clamp of the BandPO release, gives no gradient beyond it.
LOG_RATIO_LIMIT = 20.0


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


def _exp(log_ratio: Tensor) -> Tensor:
    return log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
