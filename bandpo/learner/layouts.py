"""Samples laid out in rows: padded, packed, or packed with shared prompts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from math import ceil
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from bandpo.batching import Sample
from bandpo.types import TokenBatch, token_array


@dataclass(frozen=True)
class Rows:
    """Sequences laid out in rows, as the network takes them.

    input_ids        [rows, L]
    places           per sequence, the indices of its tokens in the concatenated rows
    lengths          of the sequences as attention takes them from a row; empty where each has a
                     row of its own
    gather           [Σ lengths]: the index in the row of each token of those sequences; None where
                     the row is these sequences, one after another
    back             [L]: the inverse, for each token of the row one of its indices in `gather`
    """

    input_ids: Tensor
    places: Sequence[Tensor]
    lengths: tuple[int, ...] = ()
    gather: Tensor | None = None
    back: Tensor | None = None


@dataclass(frozen=True)
class Batch(ABC):
    """Samples as the network takes them; subclasses lay the sequences out in rows.

    states           [B, T]: the index, in the concatenated rows' hidden states, of the state that
                     predicts each completion token
    targets, mask    [B, T]: the completion tokens, and 1 where there is one
    input_ids, lengths, gather, back: as in `Rows`
    """

    samples: tuple[Sample, ...]
    input_ids: Tensor
    states: Tensor
    targets: Tensor
    mask: Tensor
    lengths: tuple[int, ...] = ()
    gather: Tensor | None = None
    back: Tensor | None = None

    @staticmethod
    @abstractmethod
    def size(samples: Sequence[Sample]) -> int:
        """The tokens of a micro-batch's budget that these samples take."""

    @staticmethod
    @abstractmethod
    def rows(samples: Sequence[Sample]) -> Rows:
        """The samples' sequences in rows."""

    @staticmethod
    def sort_key(sample: Sample) -> tuple[Any, ...]:
        """The order in which neighbours share a micro-batch well: the longest first."""
        return (-len(sample),)

    @classmethod
    def of(
        cls, samples: Sequence[Sample], device: torch.device | str = "cpu", weightless: bool = False
    ) -> Batch:
        """The batch of some samples; a weightless one has mask 0 and only keeps ranks in step."""
        rows = cls.rows(samples)
        counts = torch.tensor([len(s.completion_ids) for s in samples])
        # Completions that are all empty leave a column that the mask hides.
        kept = torch.arange(max(1, int(counts.max()))) < counts[:, None]
        # The state that predicts a token is that of the token before it.
        before = torch.cat(
            [
                place[len(sample.prompt_ids) - 1 : -1]
                for sample, place in zip(samples, rows.places, strict=True)
            ]
        )
        targets = _joined([sample.completion_ids for sample in samples])
        # Positions without a token may point anywhere: the mask hides them.
        nowhere = torch.zeros(kept.shape, dtype=torch.long)
        tensors = {
            "input_ids": rows.input_ids,
            "states": nowhere.masked_scatter(kept, before),
            "targets": nowhere.masked_scatter(kept, targets),
            "mask": kept.float() * (0.0 if weightless else 1.0),
            "gather": rows.gather,
            "back": rows.back,
        }
        moved = {k: None if t is None else t.to(device) for k, t in tensors.items()}
        return cls(tuple(samples), lengths=rows.lengths, **moved)  # type: ignore[arg-type]

    @property
    def arguments(self) -> tuple[Any, ...]:
        """The arguments of the network's forward pass."""
        rows = (self.lengths, self.gather, self.back)
        return (self.input_ids, self.states, self.targets, self.mask, *rows)

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
        """The loss's input; on-policy samples have `logp` and `entropy` as the old policy's too.

        Where the old log-probabilities are an engine's, the old policy's entropy is not known.
        """
        on_policy = not self.has("old_logp")
        advantages = torch.tensor([s.advantage for s in self.samples], device=logp.device)
        return TokenBatch(
            logp=logp,
            old_logp=logp.detach() if on_policy else self.padded("old_logp"),
            advantages=advantages[:, None].expand_as(self.mask),
            mask=self.mask,
            ref_logp=self.padded("ref_logp") if self.has("ref_logp") else None,
            rollout_logp=self.padded("rollout_logp") if self.has("rollout_logp") else None,
            entropy=self.padded("entropy")
            if self.has("entropy")
            else entropy
            if on_policy
            else None,
            new_entropy=entropy,
            step=step,
        )


class PaddedBatch(Batch):
    """One row per sequence, padded on the right.

    Causal attention never looks to the right, so padding needs no attention mask.
    """

    @staticmethod
    def size(samples: Sequence[Sample]) -> int:
        """The rows with their padding."""
        return len(samples) * max(map(len, samples), default=0)

    @staticmethod
    def rows(samples: Sequence[Sample]) -> Rows:
        """Rows of the longest sequence's length; padding holds token 0."""
        width = max(map(len, samples))
        ids = torch.zeros(len(samples), width, dtype=torch.long)
        for row, sample in zip(ids, samples, strict=True):
            row[: len(sample)] = _joined([sample.prompt_ids, sample.completion_ids])
        places = [torch.arange(len(s)) + row * width for row, s in enumerate(samples)]
        return Rows(ids, places)


class PackedBatch(Batch):
    """One row of all sequences, one after another, without padding.

    The network limits attention to each sequence (`bandpo.learner.attention`).
    """

    @staticmethod
    def size(samples: Sequence[Sample]) -> int:
        """The sequences alone."""
        return sum(map(len, samples))

    @staticmethod
    def rows(samples: Sequence[Sample]) -> Rows:
        """One row."""
        lengths = tuple(map(len, samples))
        row = _joined([ids for s in samples for ids in (s.prompt_ids, s.completion_ids)])
        return Rows(row[None], torch.arange(len(row)).split(lengths), lengths)


class SharedPromptBatch(Batch):
    """One row without padding, in which neighbouring samples of one prompt share it.

    A prompt's states do not depend on what follows, so its group can share them. Only attention
    sees every sequence whole: `gather` puts the prompt before each of its completions.
    """

    @staticmethod
    def size(samples: Sequence[Sample]) -> int:
        """The row, and a quarter for every token that attention repeats.

        Of such a token its query, key, value and output are kept: less than a quarter of the
        activations of a token that passes through the whole layer.
        """
        row = sum(len(s.completion_ids) for s in samples)
        row += sum(len(prompt) for prompt, _ in groupby(samples, key=_prompt))
        return row + ceil((sum(map(len, samples)) - row) / 4)

    @staticmethod
    def rows(samples: Sequence[Sample]) -> Rows:
        """One row; attention takes the longest sequences first, those of one length together."""
        parts: list[ArrayLike] = []
        places, end = [], 0
        for prompt, sharing in groupby(samples, key=_prompt):
            parts.append(prompt)
            shared = torch.arange(end, end := end + len(prompt))
            for sample in sharing:
                parts.append(sample.completion_ids)
                own = torch.arange(end, end := end + len(sample.completion_ids))
                places.append(torch.cat([shared, own]))
        sequences = sorted(places, key=len, reverse=True)
        gather = torch.cat(sequences)
        _, back = np.unique(gather.numpy(), return_index=True)
        lengths = tuple(map(len, sequences))
        return Rows(_joined(parts)[None], places, lengths, gather, torch.from_numpy(back))

    @staticmethod
    def sort_key(sample: Sample) -> tuple[Any, ...]:
        """Samples of one prompt are neighbours."""
        return (-len(sample.prompt_ids), sample.prompt_ids, -len(sample))


def _prompt(sample: Sample) -> tuple[int, ...]:
    return sample.prompt_ids


def _joined(parts: Sequence[ArrayLike]) -> Tensor:
    """Token ids, one part after another, as the network's embedding takes them."""
    return torch.from_numpy(np.concatenate([token_array(part) for part in parts])).long()


def micro_batches(
    samples: Sequence[Sample], token_budget: int, layout: type[Batch]
) -> list[list[Sample]]:
    """Samples in micro-batches of at most `token_budget` tokens, as the layout counts them.

    A sample longer than the budget gets a micro-batch of its own.
    """
    batches: list[list[Sample]] = []
    for sample in sorted(samples, key=layout.sort_key):
        if not batches or layout.size([*batches[-1], sample]) > token_budget:
            batches.append([])
        batches[-1].append(sample)
    return batches


def split_to(batches: Sequence[list[Sample]], count: int) -> list[list[Sample]]:
    """The micro-batches with the largest halved until there are `count` or none can be halved."""
    split = list(batches)
    while len(split) < count:
        largest = max(split, key=lambda batch: (len(batch) > 1, sum(map(len, batch))), default=[])
        if len(largest) < 2:
            break
        split.remove(largest)
        split += [largest[::2], largest[1::2]]
    return split
