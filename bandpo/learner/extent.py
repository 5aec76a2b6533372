"""The size of samples laid out together, as it grows with each of them."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from functools import reduce
from typing import NamedTuple

import numpy as np

from bandpo.batching import Sample


def prompt_key(sample: Sample) -> Hashable:
    """The same for two samples whose prompts have the same tokens."""
    ids = sample.prompt_ids
    return ids if isinstance(ids, tuple) else np.asarray(ids).tobytes()


class Extent(NamedTuple):
    """Counts of some samples, from which each layout has the size of their micro-batch.

    number, longest  of sequences, and the tokens of the longest
    tokens           of all sequences
    shared           of these with the prompt of neighbours counted once
    prompt           the last sample's
    """

    number: int = 0
    longest: int = 0
    tokens: int = 0
    shared: int = 0
    prompt: Hashable = None

    def grown(self, sample: Sample) -> Extent:
        """With one more sample behind the others."""
        length, prompt = len(sample), prompt_key(sample)
        own = len(sample.completion_ids) if prompt == self.prompt else length
        return Extent(
            self.number + 1,
            max(self.longest, length),
            self.tokens + length,
            self.shared + own,
            prompt,
        )


def extent_of(samples: Iterable[Sample]) -> Extent:
    """The extent of samples in this order."""
    return reduce(Extent.grown, samples, Extent())
