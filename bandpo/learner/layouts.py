"""Samples laid out in rows: padded, packed, or packed with shared prompts.

All of it happens on the host, in NumPy, whose arrays are the tensors' memory: the indices that the
network needs are known before it runs, and another thread may lay out the next micro-batch while
it does (`bandpo.learner.ahead`).
"""

from __future__ import annotations

import heapq
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from bandpo.batching import Sample
from bandpo.learner.extent import Extent, extent_of
from bandpo.types import TokenBatch

Indices = NDArray[np.int64]
T = TypeVar("T")

TOKEN_VALUES = ("old_logp", "entropy", "ref_logp", "rollout_logp")
"""What a sample may know of each of its tokens."""
SAMPLE_VALUES = ("weight", "pass_rate", "dual", "number")
"""What it may know that is the same for all of them."""


@dataclass(frozen=True)
class Rows:
    """Sequences laid out in rows, as the network takes them.

    input_ids        [rows, L]
    states           [N]: for each completion token, the index in the concatenated rows of the
                     token before it, whose hidden state predicts it
    lengths          of the sequences as attention takes them from a row; empty where each has a
                     row of its own
    positions        [1, L]: each token's place in its sequence; None as above
    ends             [sequences + 1], int32: where the sequences end, after a 0; None as above
    gather           [Σ lengths]: the index in the row of each token of those sequences; None where
                     the row is these sequences, one after another
    back             [L]: the inverse, for each token of the row its first index in `gather`
    """

    input_ids: Tensor
    states: Tensor
    lengths: tuple[int, ...] = ()
    positions: Tensor | None = None
    ends: Tensor | None = None
    gather: Tensor | None = None
    back: Tensor | None = None


@dataclass(frozen=True)
class Batch(ABC):
    """Samples as the network takes them; subclasses lay the sequences out in rows.

    rows             the sequences
    targets          [N]: the completion tokens, one sample's after another's
    slots            [N]: their places in a flattened [B, T]
    mask             [B, T]: 1 where there is a token
    advantages       [B, 1]
    values           of `TOKEN_VALUES` those that every sample has, [B, T], 0 without a token
    constants        of `SAMPLE_VALUES` those that every sample has, and weights where any has one,
                     [B, 1]
    weightless       whether the mask is 0 throughout: it only keeps ranks in step
    """

    samples: tuple[Sample, ...]
    rows: Rows
    targets: Tensor
    slots: Tensor
    mask: Tensor
    advantages: Tensor
    values: Mapping[str, Tensor]
    constants: Mapping[str, Tensor]
    weightless: bool = False

    @staticmethod
    @abstractmethod
    def budget(extent: Extent) -> int:
        """The tokens of a micro-batch's budget that samples of this extent take."""

    @staticmethod
    @abstractmethod
    def lay(samples: Sequence[Sample]) -> Rows:
        """The samples' sequences in rows."""

    @classmethod
    def size(cls, samples: Sequence[Sample]) -> int:
        """The tokens of a micro-batch's budget that these samples take."""
        return cls.budget(extent_of(samples))

    @staticmethod
    def ordered(samples: Iterable[Sample]) -> list[Sample]:
        """The samples so that neighbours share a micro-batch well: the longest first."""
        return sorted(samples, key=len, reverse=True)

    @classmethod
    def of(
        cls, samples: Sequence[Sample], device: torch.device | str = "cpu", weightless: bool = False
    ) -> Batch:
        """The batch of some samples; a weightless one has mask 0 and only keeps ranks in step."""
        counts = _lengths(s.completion_ids for s in samples)
        # Completions that are all empty leave a column that the mask hides.
        shape = len(samples), max(1, int(counts.max()))
        slots = _ranges(np.arange(shape[0]) * shape[1], counts)

        def padded(values: ArrayLike) -> Tensor:
            out = np.zeros(shape, dtype=np.float32)
            out.reshape(-1)[slots] = values
            return torch.from_numpy(out)

        known = [f for f in TOKEN_VALUES if all(getattr(s, f) is not None for s in samples)]
        batch = cls(
            tuple(samples),
            rows=cls.lay(samples),
            targets=_at_least_one(_joined(s.completion_ids for s in samples)),
            slots=_at_least_one(slots),
            mask=padded(0.0 if weightless else 1.0),
            advantages=torch.tensor([[s.advantage] for s in samples]),
            values={
                f: padded(_joined((getattr(s, f) for s in samples), np.float32)) for f in known
            },
            constants=_constants(samples),
            weightless=weightless,
        )
        return batch.to(device)

    def to(self, device: torch.device | str) -> Batch:
        """The batch on a device; copies of pinned memory do not wait for what runs there."""
        return _each_tensor(self, lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> Batch:
        """The batch in memory from which a GPU copies by itself."""
        return _each_tensor(self, Tensor.pin_memory)

    @property
    def arguments(self) -> tuple[Any, ...]:
        """The arguments of the network's forward pass."""
        rows = self.rows
        packing = (rows.lengths, rows.positions, rows.ends, rows.gather, rows.back)
        return (rows.input_ids, rows.states, self.targets, self.slots, self.mask, *packing)

    def token_batch(self, logp: Tensor, entropy: Tensor | None, step: int) -> TokenBatch:
        """The loss's input; on-policy samples have `logp` and `entropy` as the old policy's too.

        Where the old log-probabilities are an engine's, the old policy's entropy is not known.
        """
        values = self.values
        on_policy = "old_logp" not in values
        old_entropy = entropy.detach() if on_policy and entropy is not None else None
        return TokenBatch(
            logp=logp,
            old_logp=logp.detach() if on_policy else values["old_logp"],
            advantages=self.advantages.expand_as(self.mask),
            mask=self.mask,
            ref_logp=values.get("ref_logp"),
            rollout_logp=values.get("rollout_logp"),
            entropy=values.get("entropy", old_entropy),
            new_entropy=entropy,
            step=step,
            **{name: value.expand_as(self.mask) for name, value in self.constants.items()},
        )


class PaddedBatch(Batch):
    """One row per sequence, padded on the right.

    Causal attention never looks to the right, so padding needs no attention mask.
    """

    @staticmethod
    def budget(extent: Extent) -> int:
        """The rows with their padding."""
        return extent.number * extent.longest

    @staticmethod
    def lay(samples: Sequence[Sample]) -> Rows:
        """Rows of the longest sequence's length; padding holds token 0."""
        lengths = _lengths(samples)
        ids = np.zeros((len(samples), lengths.max()), dtype=np.int64)
        begins = np.arange(len(samples)) * ids.shape[1]
        ids.reshape(-1)[_ranges(begins, lengths)] = _joined(_sequences(samples))
        prompts = _lengths(s.prompt_ids for s in samples)
        return Rows(torch.from_numpy(ids), _states(samples, begins, begins + prompts))


class PackedBatch(Batch):
    """One row of all sequences, one after another, without padding.

    The network limits attention to each sequence (`bandpo.learner.attention`).
    """

    @staticmethod
    def budget(extent: Extent) -> int:
        """The sequences alone."""
        return extent.tokens

    @staticmethod
    def lay(samples: Sequence[Sample]) -> Rows:
        """One row."""
        lengths = _lengths(samples)
        begins = lengths.cumsum() - lengths
        prompts = _lengths(s.prompt_ids for s in samples)
        return Rows(
            torch.from_numpy(_joined(_sequences(samples))[None]),
            _states(samples, begins, begins + prompts),
            tuple(lengths.tolist()),
            positions=torch.from_numpy(_ranges(np.zeros_like(lengths), lengths)[None]),
            ends=_ends(lengths),
        )


class SharedPromptBatch(Batch):
    """One row without padding, in which neighbouring samples of one prompt share it.

    A prompt's states do not depend on what follows, so its group can share them. Only attention
    sees every sequence whole: `gather` puts the prompt before each of its completions.
    """

    @staticmethod
    def budget(extent: Extent) -> int:
        """The row, and a quarter for every token that attention repeats.

        Of such a token its query, key, value and output are kept: less than a quarter of the
        activations of a token that passes through the whole layer.
        """
        return extent.shared + ceil((extent.tokens - extent.shared) / 4)

    @staticmethod
    def ordered(samples: Iterable[Sample]) -> list[Sample]:
        """Samples of one prompt are neighbours, the longest first."""
        groups: dict[tuple[int, ...], list[Sample]] = {}
        for sample in samples:
            groups.setdefault(sample.prompt_ids, []).append(sample)
        by_prompt = sorted(groups.items(), key=lambda item: (-len(item[0]), item[0]))
        return [s for _, group in by_prompt for s in sorted(group, key=len, reverse=True)]

    @staticmethod
    def lay(samples: Sequence[Sample]) -> Rows:
        """One row; attention takes the longest sequences first, those of one length together."""
        pieces: list[Any] = []
        begins = np.empty((len(samples), 2), dtype=np.int64)  # of prompt and completion
        place, prompt = 0, None
        for index, sample in enumerate(samples):
            if sample.prompt_ids != prompt:
                prompt, begin = sample.prompt_ids, place
                pieces.append(prompt)
                place += len(prompt)
            begins[index] = begin, place
            pieces.append(sample.completion_ids)
            place += len(sample.completion_ids)
        lengths = _lengths(samples)
        order = np.argsort(-lengths, kind="stable")
        parts = np.array([[len(s.prompt_ids), len(s.completion_ids)] for s in samples])
        gather = _ranges(begins[order].reshape(-1), parts[order].reshape(-1))
        back = np.empty(place, dtype=np.int64)
        back[gather[::-1]] = np.arange(len(gather))[::-1]  # of equal indices the last one stays
        positions = _ranges(np.zeros_like(lengths), lengths[order])[back]
        return Rows(
            torch.from_numpy(_joined(pieces)[None]),
            _states(samples, *begins.T),
            tuple(lengths[order].tolist()),
            positions=torch.from_numpy(positions[None]),
            ends=_ends(lengths[order]),
            gather=torch.from_numpy(gather),
            back=torch.from_numpy(back),
        )


def _constants(samples: Sequence[Sample]) -> dict[str, Tensor]:
    """`Batch.constants`; a sample without a weight has 1 beside others that have one."""
    found = {name: [getattr(sample, name) for sample in samples] for name in SAMPLE_VALUES}
    if any(weight is not None for weight in found["weight"]):
        found["weight"] = [1.0 if weight is None else weight for weight in found["weight"]]
    return {
        name: torch.tensor([[value] for value in values], dtype=torch.float32)
        for name, values in found.items()
        if None not in values
    }


def _lengths(items: Iterable[Any]) -> Indices:
    return np.array([len(item) for item in items], dtype=np.int64)


def _joined(parts: Iterable[Any], dtype: type = np.int64) -> NDArray[Any]:
    """Tuples, arrays or tensors as one array."""
    return np.concatenate([np.asarray(part, dtype=dtype) for part in parts])


def _sequences(samples: Sequence[Sample]) -> Iterable[Any]:
    return itertools.chain.from_iterable((s.prompt_ids, s.completion_ids) for s in samples)


def _ranges(begins: Indices, lengths: Indices) -> Indices:
    """begin, begin + 1, …, `length` of them, for each begin, one after another."""
    ends = lengths.cumsum()
    return np.arange(lengths.sum()) + np.repeat(begins - (ends - lengths), lengths)


def _ends(lengths: Indices) -> Tensor:
    return torch.from_numpy(np.concatenate([[0], lengths.cumsum()]).astype(np.int32))


def _states(samples: Sequence[Sample], prompts: Indices, completions: Indices) -> Tensor:
    """`Rows.states` of sequences whose prompts and completions begin at these places of the rows.

    The state that predicts a token is that of the token before it.
    """
    counts = _lengths(s.completion_ids for s in samples)
    states = _ranges(completions - 1, counts)
    last = prompts + _lengths(s.prompt_ids for s in samples) - 1
    some = counts > 0
    states[(counts.cumsum() - counts)[some]] = last[some]
    return _at_least_one(states)


def _at_least_one(indices: Indices) -> Tensor:
    """As a tensor; a batch without tokens scores one position, so ranks' collectives match."""
    return torch.from_numpy(indices if len(indices) else np.zeros(1, dtype=np.int64))


def _each_tensor(value: T, move: Callable[[Tensor], Tensor]) -> T:
    """The value with every tensor inside moved."""
    moved: Any = value
    if isinstance(value, Tensor):
        moved = move(value)
    elif isinstance(value, Mapping):
        moved = {name: _each_tensor(item, move) for name, item in value.items()}
    elif isinstance(value, Rows | Batch):
        parts = {name: _each_tensor(item, move) for name, item in vars(value).items()}
        moved = replace(value, **parts)
    return moved  # type: ignore[no-any-return]


def micro_batches(
    samples: Sequence[Sample], token_budget: int, layout: type[Batch]
) -> list[list[Sample]]:
    """Samples in micro-batches of at most `token_budget` tokens, as the layout counts them.

    A sample longer than the budget gets a micro-batch of its own.
    """
    batches: list[list[Sample]] = []
    extent = Extent()
    for sample in layout.ordered(samples):
        extent = extent.grown(sample)
        if not batches or layout.budget(extent) > token_budget:
            batches.append([])
            extent = Extent().grown(sample)
        batches[-1].append(sample)
    return batches


def split_to(batches: Sequence[list[Sample]], count: int) -> list[list[Sample]]:
    """The micro-batches with the largest halved until there are `count` or none can be halved."""
    split = dict(enumerate(batches))
    largest = [(-sum(map(len, batch)), place) for place, batch in split.items() if len(batch) > 1]
    heapq.heapify(largest)
    places = itertools.count(len(batches))
    while len(split) < count and largest:
        batch = split.pop(heapq.heappop(largest)[1])
        for half, place in zip((batch[::2], batch[1::2]), places, strict=False):
            split[place] = half
            if len(half) > 1:
                heapq.heappush(largest, (-sum(map(len, half)), place))
    return list(split.values())
