"""Groups become samples, and samples become each rank's share of the minibatches."""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from heapq import heapreplace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bandpo.types import BatchTotals, Group, token_array

T = TypeVar("T")
Place = tuple[int, int]
"""A completion among groups: the group's index and its own in the group."""


@dataclass(eq=False)
class Sample:
    """One completion with its prompt and what the loss needs; per-token tensors are [T] on the CPU.

    `id` names it in messages: the problem's id and the completion's place in its group. The
    learner fills in `old_logp`, `entropy` and `ref_logp`. A sample without `old_logp` is on policy:
    the update's own forward pass gives it. Without a rollout correction a sample of an older
    `weight_version` has the engine's log-probabilities as `old_logp`. `weight`, `pass_rate` and
    `dual` are those of `TokenBatch`, of one sample; a weight of None is 1.
    """

    prompt_ids: tuple[int, ...]
    completion_ids: NDArray[np.int32]
    advantage: float
    rollout_logp: Tensor | None
    old_logp: Tensor | None = None
    entropy: Tensor | None = None
    ref_logp: Tensor | None = None
    weight_version: int = 0
    id: str = ""
    weight: float | None = None
    pass_rate: float | None = None
    dual: float | None = None

    def __post_init__(self) -> None:
        self.completion_ids = token_array(self.completion_ids)

    @property
    def number(self) -> float:
        """A whole number below 2^24 that follows from the id (`TokenBatch.number`)."""
        return float(zlib.crc32(self.id.encode()) >> 8)

    def take_behaviour_policy(self) -> None:
        """Makes the policy that sampled it, with the weights of that time, the old policy."""
        self.old_logp, self.rollout_logp = self.rollout_logp, None

    @classmethod
    def of(cls, group: Group, index: int, advantage: float) -> Sample:
        """One completion of a group."""
        completion = group.completions[index]
        return cls(
            prompt_ids=group.prompt.token_ids,
            completion_ids=completion.token_ids,
            advantage=advantage,
            rollout_logp=torch.from_numpy(completion.logprobs),
            weight_version=completion.weight_version,
            id=f"{group.problem.id}/{index}",
        )

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


def samples_of(group: Group, advantages: Sequence[float]) -> list[Sample]:
    """The completions of a group with their advantages, in order."""
    return [Sample.of(group, index, advantage) for index, advantage in enumerate(advantages)]


NOTHING = BatchTotals(0.0, 0.0)


class Minibatch(list[Sample]):
    """A rank's samples of a minibatch.

    pruned        the counts of its share that is not computed (`prune`), which normalise the loss
    pruned_share  of the samples of all ranks
    """

    def __init__(
        self, samples: Iterable[Sample], pruned: BatchTotals = NOTHING, pruned_share: float = 0.0
    ) -> None:
        super().__init__(samples)
        self.pruned, self.pruned_share = pruned, pruned_share


def totals_of(samples: Sequence[Sample]) -> BatchTotals:
    """The counts that normalise a loss over these samples and those pruned beside them."""
    pruned = samples.pruned if isinstance(samples, Minibatch) else NOTHING
    return BatchTotals(
        sequences=pruned.sequences + len(samples),
        tokens=pruned.tokens + sum(len(sample.completion_ids) for sample in samples),
    )


def prune(
    advantages: Sequence[Sequence[float]],
    ids: Sequence[Sequence[str]],
    share: float,
    seed: str,
    masked: Collection[Place] = (),
) -> tuple[frozenset[Place], dict[Place, float]]:
    """The samples that a step does not compute, and the weights of others that it might not have.

    Sample i is pruned with probability P_i, which is `share` where |A_i| is below the mean |A| of
    the step's samples and 0 elsewhere; one that is kept counts 1/(1 − P_i) times, so that the
    expected gradient is that of all. Advantages [P, G] are those of the unpruned groups; `masked`
    samples are not counted. The draw is each sample's own, from the seed and its id [P, G]: the
    same on every rank.
    Source of the structure: dynamic pruning of arXiv 2603.04135; the rule is ours.
    """
    if share == 0:
        return frozenset(), {}
    sizes = {
        (i, j): abs(advantage)
        for i, group in enumerate(advantages)
        for j, advantage in enumerate(group)
        if (i, j) not in masked
    }
    mean = math.fsum(sizes.values()) / max(len(sizes), 1)
    small = [place for place, size in sizes.items() if size < mean]
    gone = frozenset(
        (i, j) for i, j in small if random.Random(f"{seed}/prune/{ids[i][j]}").random() < share
    )
    return gone, {place: 1 / (1 - share) for place in small if place not in gone}


def schedule(
    lengths: Sequence[Sequence[int]],
    cost: Callable[[int], float],
    *,
    updates: int,
    epochs: int,
    seed: str,
    ranks: int = 1,
    masked: Collection[Place] = (),
) -> list[list[list[Place]]]:
    """Each rank's places in each minibatch of a step: `updates` minibatches for each of `epochs`.

    `lengths` [P, G] are the tokens of prompt and completion together, `cost` that of a sequence by
    its tokens. The minibatches are the same whatever the number of ranks; each is shared out so
    that the ranks finish together. `masked` completions are in none. The same on every rank.
    """
    places = [
        [(i, j) for j in range(len(group)) if (i, j) not in masked]
        for i, group in enumerate(lengths)
    ]
    batches = []
    for epoch in range(epochs):
        for members in minibatches(places, updates, f"{seed}/{epoch}"):
            costs = [cost(lengths[i][j]) for i, j in members]
            batches.append([[members[k] for k in part] for part in balanced(costs, ranks)])
    return batches


def minibatches(groups: Sequence[Sequence[T]], count: int, seed: str) -> list[list[T]]:
    """`count` minibatches of whole groups, in an order drawn from the seed.

    Their numbers of groups differ by at most one.
    """
    order = list(range(len(groups)))
    random.Random(seed).shuffle(order)
    return [
        [member for index in order[start::count] for member in groups[index]]
        for start in range(count)
    ]


def sequence_cost(length: int, hidden_size: int) -> float:
    """Compute of a sequence of n tokens in units of one token's: n·(1 + n/(12·hidden)).

    A transformer layer takes 24·hidden² FLOPs per token in its matrices and, causally, 2·n·hidden
    in attention.
    """
    return length * (1 + length / (12 * hidden_size))


def balanced(costs: Sequence[float], parts: int) -> list[list[int]]:
    """The items' indices in `parts` of nearly equal cost, the most expensive dealt out first.

    Each goes to the cheapest part so far. No part exceeds the mean by more than the most expensive
    item (Graham, Bounds on Multiprocessing Timing Anomalies, 1969: at most 4/3 of the best
    possible). The same on every rank.
    """
    members: list[list[int]] = [[] for _ in range(parts)]
    loads = [(0.0, part) for part in range(parts)]  # a heap: the first of the cheapest parts leads
    for index in sorted(range(len(costs)), key=lambda i: -costs[i]):
        load, cheapest = loads[0]
        members[cheapest].append(index)
        heapreplace(loads, (load + costs[index], cheapest))
    return members
