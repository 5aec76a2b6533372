"""A prompt whose answers are single tokens, and the tabular softmax policies that answer it.

Shapes: S seeds (independent policies, trained side by side), K actions, G samples of a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bandpo.errors import UserError

COVERAGE_SAMPLES = 32


class Streams:
    """A stream of uniform numbers per seed, whatever else is trained.

    Methods that are compared draw from equal streams: as long as their policies are equal, so are
    their samples (common random numbers).
    """

    def __init__(self, seed: int, count: int) -> None:
        self._generators = [np.random.default_rng([seed, index]) for index in range(count)]

    def uniform(self, numbers: int) -> Tensor:
        """The next `numbers` of each stream in [0, 1), [S, numbers]."""
        drawn = [generator.random(numbers, dtype=np.float32) for generator in self._generators]
        return torch.from_numpy(np.stack(drawn)).double()


@dataclass(frozen=True)
class Actions:
    """`count` actions whose probabilities a seed draws log-uniformly from [low, high]."""

    count: int
    low: float
    high: float

    def __post_init__(self) -> None:
        if not (self.count >= 1 and 0 < self.low <= self.high < 1):
            raise UserError(f"{self}: needs count >= 1 and 0 < low <= high < 1.")


@dataclass(frozen=True)
class Bandit:
    """K actions; the correct ones come first, the others share the remaining probability equally.

    Raises UserError where the correct actions could leave nothing to the others.
    """

    actions: int
    correct: Sequence[Actions]

    def __post_init__(self) -> None:
        most = sum(group.count * group.high for group in self.correct)
        if not (self.correct and self.correct_count < self.actions and most < 1):
            raise UserError(
                f"{self}: needs correct actions, fewer than all, of less than probability 1 "
                f"together; they are {self.correct_count} with up to {most:.3g}."
            )

    @property
    def correct_count(self) -> int:
        """Correct actions of a policy."""
        return sum(group.count for group in self.correct)

    def start(self, streams: Streams) -> Tensor:
        """The logits [S, K] of one policy per seed, drawn from the seeds' streams."""
        ranges = [(group.low, group.high) for group in self.correct for _ in range(group.count)]
        low, high = torch.tensor(ranges, dtype=torch.float64).log().T
        correct = low + (high - low) * streams.uniform(len(ranges))
        others = self.actions - self.correct_count
        rest = (1 - correct.exp().sum(-1, keepdim=True)).div(others).log()
        return torch.cat([correct, rest.expand(-1, others)], dim=-1)

    def sample(self, probabilities: Tensor, uniform: Tensor) -> Tensor:
        """Actions [S, G] of policies [S, K] for uniform numbers [S, G], by the inverse CDF."""
        cumulated = probabilities.cumsum(-1)
        drawn = torch.searchsorted(cumulated, uniform * cumulated[:, -1:], right=True)
        return drawn.clamp(max=self.actions - 1)

    def rewards(self, actions: Tensor) -> Tensor:
        """1 for correct actions, 0 for others."""
        return (actions < self.correct_count).double()

    def state(self, logits: Tensor) -> State:
        """Accuracy, entropy and coverage of policies with these logits [S, K]."""
        log_p = logits.log_softmax(-1)
        correct = log_p[:, : self.correct_count]
        accuracy = correct.exp().sum(-1)
        return State(
            accuracy=accuracy,
            entropy=_entropy(log_p),
            coverage=coverage(correct.exp()),
        )


class State(NamedTuple):
    """Policies in three numbers, each [S].

    accuracy  probability of a correct action
    entropy   of the policy, in nats
    coverage  expected number of distinct correct actions among 32 samples
    """

    accuracy: Tensor
    entropy: Tensor
    coverage: Tensor


def coverage(probabilities: Tensor, samples: int = COVERAGE_SAMPLES) -> Tensor:
    """Expected number of distinct actions among `samples` draws: Σ 1 − (1 − p)^samples, [...]."""
    return -torch.expm1(samples * torch.log1p(-probabilities.clamp(max=1))).sum(-1)


def _entropy(log_p: Tensor) -> Tensor:
    return -(log_p.exp() * log_p).sum(-1)
