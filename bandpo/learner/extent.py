"""The size of samples laid out together, as it grows with each of them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from typing import NamedTuple

from bandpo.batching import Sample


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
    prompt: tuple[int, ...] | None = None

    def grown(self, sample: Sample) -> Extent:
        """With one more sample behind the others."""
        length = len(sample)
        own = len(sample.completion_ids) if sample.prompt_ids == self.prompt else length
        return Extent(
            self.number + 1,
            max(self.longest, length),
            self.tokens + length,
            self.shared + own,
            sample.prompt_ids,
        )


def extent_of(samples: Iterable[Sample]) -> Extent:
    """The extent of samples in this order."""
    return reduce(Extent.grown, samples, Extent())
