"""Groups become samples, samples become minibatches, ranks' shares and micro-batches."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import TypeVar

import torch
from torch import Tensor

from bandpo.types import BatchTotals, Group, TokenBatch

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


@dataclass(frozen=True)
class Batch(ABC):
    """Samples as the network takes them; subclasses lay the sequences out in rows.

    input_ids        [rows, L]: prompts and completions
    states           [B, T]: where, in the hidden states of all rows one after another, the state
                     stands that predicts each completion token
    targets, mask    [B, T]: the completion tokens, and 1 where there is one
    lengths          of the sequences that share a row; empty where each has a row of its own
    """

    samples: tuple[Sample, ...]
    input_ids: Tensor
    states: Tensor
    targets: Tensor
    mask: Tensor
    lengths: tuple[int, ...] = ()

    @staticmethod
    @abstractmethod
    def size(lengths: Sequence[int]) -> int:
        """Tokens that the network computes for sequences of these lengths."""

    @staticmethod
    @abstractmethod
    def rows(sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, tuple[int, ...]]:
        """(input_ids [rows, L], where in them each sequence starts [B], lengths as above)."""

    @classmethod
    def of(
        cls, samples: Sequence[Sample], device: torch.device | str = "cpu", weightless: bool = False
    ) -> Batch:
        """Lays samples out; a weightless batch has mask 0 and only keeps ranks in step."""
        input_ids, starts, lengths = cls.rows([s.prompt_ids + s.completion_ids for s in samples])
        prompts = torch.tensor([len(s.prompt_ids) for s in samples])
        counts = torch.tensor([len(s.completion_ids) for s in samples])
        steps = torch.arange(int(counts.max()))
        kept = steps < counts[:, None]
        # Positions without a token may point anywhere: the mask keeps them from being looked at.
        states = ((starts + prompts - 1)[:, None] + steps).masked_fill(~kept, 0)
        tokens = torch.tensor(list(chain.from_iterable(s.completion_ids for s in samples)))
        targets = torch.zeros(kept.shape, dtype=torch.long).masked_scatter(kept, tokens)
        mask = kept.float() * (0.0 if weightless else 1.0)
        input_ids, states, targets, mask = (
            tensor.to(device) for tensor in (input_ids, states, targets, mask)
        )
        return cls(tuple(samples), input_ids, states, targets, mask, lengths)

    def padded(self, field: str) -> Tensor:
        """A per-token field of the samples as [B, T], 0 where there is no token."""
        out = torch.zeros(self.mask.shape)
        for row, sample in enumerate(self.samples):
            values = getattr(sample, field)
            out[row, : len(values)] = values
        return out.to(self.mask.device)

    def has(self, field: str) -> bool:
        """Whether every sample carries the field."""
        return all(getattr(sample, field) is not None for sample in self.samples)

    def token_batch(self, logp: Tensor, entropy: Tensor | None, step: int) -> TokenBatch:
        """What the loss sees; on-policy samples take their old log-probabilities from `logp`."""
        advantages = torch.tensor([s.advantage for s in self.samples], device=logp.device)
        return TokenBatch(
            logp=logp,
            old_logp=self.padded("old_logp") if self.has("old_logp") else logp.detach(),
            advantages=advantages[:, None].expand_as(self.mask),
            mask=self.mask,
            ref_logp=self.padded("ref_logp") if self.has("ref_logp") else None,
            rollout_logp=self.padded("rollout_logp") if self.has("rollout_logp") else None,
            entropy=self.padded("entropy") if self.has("entropy") else entropy,
            step=step,
        )


class PaddedBatch(Batch):
    """A row a sequence, padded on the right.

    In causal attention nothing looks to the right, so that padding needs no attention mask.
    """

    @staticmethod
    def size(lengths: Sequence[int]) -> int:
        """Every sequence is as long as the longest."""
        return len(lengths) * max(lengths, default=0)

    @staticmethod
    def rows(sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, tuple[int, ...]]:
        """Rows of the longest sequence's length; padding holds token 0."""
        width = max(map(len, sequences))
        ids = [[*sequence, *[0] * (width - len(sequence))] for sequence in sequences]
        return torch.tensor(ids), torch.arange(len(ids)) * width, ()


class PackedBatch(Batch):
    """One row of all sequences, one after another, without padding.

    The network limits attention to each sequence (`bandpo.learner.attention`).
    """

    @staticmethod
    def size(lengths: Sequence[int]) -> int:
        """Nothing but the sequences."""
        return sum(lengths)

    @staticmethod
    def rows(sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, tuple[int, ...]]:
        """One row."""
        lengths = tuple(map(len, sequences))
        starts = [0, *accumulate(lengths)][:-1]
        row = list(chain.from_iterable(sequences))
        return torch.tensor([row]), torch.tensor(starts), lengths


def micro_batches(
    samples: Sequence[Sample], token_budget: int, layout: type[Batch]
) -> list[list[Sample]]:
    """Samples of similar length together, at most `token_budget` tokens as they are laid out.

    A sample longer than the budget gets a micro-batch of its own.
    """
    batches: list[list[Sample]] = []
    lengths: list[int] = []  # of the last batch
    for sample in sorted(samples, key=len, reverse=True):
        lengths.append(len(sample))
        if not batches or layout.size(lengths) > token_budget:
            batches.append([])
            lengths = [len(sample)]
        batches[-1].append(sample)
    return batches


def split_to(batches: Sequence[list[Sample]], count: int) -> list[list[Sample]]:
    """The micro-batches, the largest halved until there are `count` or none can be halved."""
    split = list(batches)
    while len(split) < count:
        largest = max(split, key=lambda batch: (len(batch) > 1, sum(map(len, batch))), default=[])
        if len(largest) < 2:
            break
        split.remove(largest)
        split += [largest[::2], largest[1::2]]
    return split
