"""The entropy bonus, with a floor under which its coefficient rises."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from bandpo.errors import UserError
from bandpo.types import TokenBatch


@dataclass(frozen=True)
class EntropyBonus:
    """coefficient × the entropy H(π(·|s_t)) of the policy being trained, off every token's loss.

    H is that of the distribution that was sampled from, at its temperature. A coefficient of 0
    makes it inactive: no gradient of the entropy is computed. With a `floor` [nats] the coefficient
    follows the entropy (`EntropyFloor`) from `coefficient` up to `maximum`, by `increment` per
    rollout. Source: Asynchronous Methods for Deep Reinforcement Learning, section 4 (A3C). Raises
    UserError for negative values, an increment of 0 and a maximum below the coefficient.
    """

    coefficient: float = 0.0
    floor: float | None = None
    increment: float = 1e-4
    maximum: float = 5e-3

    def __post_init__(self) -> None:
        if not self.coefficient >= 0:
            raise UserError(f"{self}: coefficient must not be negative.")
        if self.floor is None:
            return
        if not (self.floor >= 0 and self.increment > 0):
            raise UserError(f"{self}: floor must not be negative, increment must be positive.")
        if self.maximum < self.coefficient:
            raise UserError(f"{self}: maximum must be at least the coefficient.")

    @property
    def needs_entropy_gradient(self) -> bool:
        """Whether it is active."""
        return self.coefficient > 0

    def __call__(self, batch: TokenBatch) -> Tensor:
        if batch.new_entropy is None:
            raise ValueError("An entropy bonus needs TokenBatch.new_entropy.")
        return self.coefficient * batch.new_entropy


@dataclass(frozen=True)
class EntropyFloor:
    """The coefficient of a bonus with a floor, as it follows the mean entropy of each rollout.

    c rises by the increment after a rollout whose entropy e is below the floor and falls by it
    after any other, within [coefficient, maximum]; the bonus has c while e is at most the floor,
    and its own coefficient otherwise. Source: Skywork Open Reasoner 1 Technical Report, adaptive
    entropy control; its public runs have a target of 0.2 nats, increments of 1e-4 and at most 5e-3.
    There e is measured before a rollout's updates, here over them, for the next one's.
    """

    bonus: EntropyBonus
    raised: float
    is_below: bool = False

    @classmethod
    def of(cls, bonus: EntropyBonus) -> EntropyFloor:
        """That of a run's first rollout."""
        return cls(bonus, bonus.coefficient)

    @property
    def current(self) -> EntropyBonus:
        """The bonus of the next rollout's updates."""
        return replace(self.bonus, coefficient=self.raised) if self.is_below else self.bonus

    def after(self, entropy: float) -> EntropyFloor:
        """The state after a rollout with this mean entropy [nats]."""
        assert self.bonus.floor is not None
        if entropy < self.bonus.floor:
            raised = min(self.raised + self.bonus.increment, self.bonus.maximum)
        else:
            raised = max(self.raised - self.bonus.increment, self.bonus.coefficient)
        return replace(self, raised=raised, is_below=entropy <= self.bonus.floor)


def has_entropy_gradient(loss: Any) -> bool:
    """Whether a loss declares that it takes a gradient through `TokenBatch.new_entropy`.

    It does so by an attribute `needs_entropy_gradient`; without it the entropy has none.
    """
    return bool(getattr(loss, "needs_entropy_gradient", False))
