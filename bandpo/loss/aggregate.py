"""Aggregation of per-token values: linear weights over the tokens of an optimizer batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor

from bandpo.errors import UserError
from bandpo.types import BatchTotals


def batch_totals(mask: Tensor) -> BatchTotals:
    """Counts of a batch that is a whole optimizer batch: sequences with a token, and tokens.

    Reads the counts on the host; a learner that splits its batch adds them up itself.
    """
    sequences, tokens = int(mask.bool().any(-1).sum()), int(mask.sum())
    return BatchTotals(sequences=max(sequences, 1), tokens=max(tokens, 1))


class Aggregate(Protocol):
    """Weights [B, T] with which per-token values are summed; 0 wherever the mask is 0.

    `mask` is [B, T] of 0 and 1 in a floating dtype; `totals` counts the whole optimizer batch, so
    the sums of micro-batches add up to the value of the batch.
    """

    def weights(self, mask: Tensor, totals: BatchTotals) -> Tensor: ...


@dataclass(frozen=True)
class TokenMean:
    """Every token counts the same: 1/Σ|y_i|. Source: DAPO, section 3.3."""

    vanishes_at_zero_advantage: ClassVar[bool] = True

    def weights(self, mask: Tensor, totals: BatchTotals) -> Tensor:
        return mask / totals.tokens


@dataclass(frozen=True)
class SequenceMeanTokenMean:
    """Every sequence counts the same: 1/(N·|y_i|). Source: DeepSeekMath, equation 3 (GRPO)."""

    vanishes_at_zero_advantage: ClassVar[bool] = True

    def weights(self, mask: Tensor, totals: BatchTotals) -> Tensor:
        return mask / (mask.sum(-1, keepdim=True).clamp(min=1) * totals.sequences)


@dataclass(frozen=True)
class SequenceMeanTokenSum:
    """The mean over sequences of the sum over their tokens: 1/N."""

    vanishes_at_zero_advantage: ClassVar[bool] = True

    def weights(self, mask: Tensor, totals: BatchTotals) -> Tensor:
        return mask / totals.sequences


@dataclass(frozen=True)
class ConstantNorm:
    """Dr. GRPO: sums over tokens divided by a constant instead of the length, 1/(N·max_tokens).

    Source: Understanding R1-Zero-Like Training: A Critical Perspective, section 3.2; max_tokens is
    the generation budget. Raises UserError for max_tokens <= 0.
    """

    vanishes_at_zero_advantage: ClassVar[bool] = True

    max_tokens: int

    def __post_init__(self) -> None:
        if self.max_tokens <= 0:
            raise UserError(f"{self}: max_tokens must be positive.")

    def weights(self, mask: Tensor, totals: BatchTotals) -> Tensor:
        return mask / (totals.sequences * self.max_tokens)
