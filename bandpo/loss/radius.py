"""Trust-region radii that change over training or over tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from bandpo.errors import UserError
from bandpo.types import TokenBatch


class Radius(ABC):
    """A radius δ > 0 that depends on the batch: a number, or a tensor [B, T] for one per token."""

    @abstractmethod
    def __call__(self, batch: TokenBatch) -> float | Tensor:
        """The radius for this batch, in the units of the divergence."""


@dataclass(frozen=True)
class LinearRadius(Radius):
    """A radius that moves from `start` to `end` over `steps` training steps and stays there.

    δ = start + (end − start)·min(step/steps, 1). Raises UserError unless all three are positive.
    """

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        if min(self.start, self.end, self.steps) <= 0:
            raise UserError(f"{self}: start, end and steps must be positive.")

    def __call__(self, batch: TokenBatch) -> float:
        return self.start + (self.end - self.start) * min(batch.step / self.steps, 1.0)


@dataclass(frozen=True)
class EntropyRadius(Radius):
    """A radius that widens with the entropy H of the old policy at the token's position, [B, T].

    δ = minimum + (maximum − minimum)·min(H/scale, 1), H and scale in nats: tight where the policy
    is sure, wide at the forks of a chain of thought. An answer to BandPO's future work (adaptive
    radius). Raises UserError for numbers out of range and ValueError for a batch without entropy.
    """

    minimum: float
    maximum: float
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not (0 < self.minimum <= self.maximum and self.scale > 0):
            raise UserError(f"{self}: needs 0 < minimum <= maximum and scale > 0.")

    def __call__(self, batch: TokenBatch) -> Tensor:
        if batch.entropy is None:
            raise ValueError("EntropyRadius needs TokenBatch.entropy, the old policy's entropy.")
        share = (batch.entropy.detach() / self.scale).clamp(0, 1)
        return self.minimum + (self.maximum - self.minimum) * share
