"""Groups become samples, samples become minibatches, ranks' shares and micro-batches."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from bandpo.types import BatchTotals, Group

T = TypeVar("T")


@dataclass(eq=False)
class Sample:
    """One completion with its prompt and what the loss needs; per-token tensors are [T] on the CPU.

    `id` names it in messages: the problem's id and the completion's place in its group.
    `old_logp`, `entropy` and `ref_logp` are filled in by the learner; a sample without `old_logp`
    is on policy: the learner's own forward pass gives it. One whose `weight_version` is not the
    learner's has the engine's log-probabilities as `old_logp`.
    """

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    advantage: float
    rollout_logp: Tensor | None
    old_logp: Tensor | None = None
    entropy: Tensor | None = None
    ref_logp: Tensor | None = None
    weight_version: int = 0
    id: str = ""

    def take_behaviour_policy(self) -> None:
        """Makes the policy that sampled it, at the weights it was sampled with, the old policy."""
        self.old_logp, self.rollout_logp = self.rollout_logp, None

    @classmethod
    def of(cls, group: Group, index: int, advantage: float) -> Sample:
        """One completion of a group."""
        completion = group.completions[index]
        return cls(
            prompt_ids=group.prompt.token_ids,
            completion_ids=completion.token_ids,
            advantage=advantage,
            rollout_logp=torch.tensor(completion.logprobs, dtype=torch.float32),
            weight_version=completion.weight_version,
            id=f"{group.problem.id}/{index}",
        )

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


def samples_of(group: Group, advantages: Sequence[float]) -> list[Sample]:
    """The completions of a group with their advantages, in order."""
    return [Sample.of(group, index, advantage) for index, advantage in enumerate(advantages)]


def totals_of(samples: Sequence[Sample]) -> BatchTotals:
    """The counts that a loss over exactly these samples is normalised by."""
    return BatchTotals(
        sequences=float(len(samples)),
        tokens=float(sum(len(sample.completion_ids) for sample in samples)),
    )


def minibatches(groups: Sequence[Sequence[T]], count: int, seed: str) -> list[list[T]]:
    """`count` minibatches of whole groups, in an order drawn from the seed.

    Their group counts differ by at most one.
    """
    order = list(range(len(groups)))
    random.Random(seed).shuffle(order)
    return [
        [member for index in order[start::count] for member in groups[index]]
        for start in range(count)
    ]


def sequence_cost(length: int, hidden_size: int) -> float:
    """Compute of a sequence of n tokens in units of a token's: n·(1 + n/(12·hidden)).

    A transformer layer takes 24·hidden² FLOPs a token in its matrices and, causally, 2·n·hidden in
    attention.
    """
    return length * (1 + length / (12 * hidden_size))


def deal(costs: Sequence[float], hands: int) -> list[list[int]]:
    """Indices dealt so that the hands' costs come out near equal: dearest first, to the poorest.

    No hand exceeds the mean by more than the dearest item (Graham, Bounds on Multiprocessing Timing
    Anomalies, 1969: at most 4/3 of the best possible). The same on every rank.
    """
    dealt: list[list[int]] = [[] for _ in range(hands)]
    load = [0.0] * hands
    for index in sorted(range(len(costs)), key=lambda i: -costs[i]):
        poorest = min(range(hands), key=load.__getitem__)
        dealt[poorest].append(index)
        load[poorest] += costs[index]
    return dealt
