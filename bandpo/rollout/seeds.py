"""Sampling seeds that follow from the run, the occasion and the problem.

Samplers use different bits of a seed: torch's generator takes the lower 32 on a CPU and all 64 on a
GPU, and one of vLLM's samplers hashes all 64 to 32. vLLM gives sample i of a prompt the seed + i.
So all prompts of an occasion share the upper half, and their lower halves are further apart than
their numbers of samples: no two samples share a stream of random numbers.
"""

from __future__ import annotations

import hashlib
from itertools import count

from bandpo.errors import UserError

# Groups of up to so many samples get the same seeds whatever their size.
_USUAL_SAMPLES = 64
_STREAMS = 2**32


class Seeds:
    """The seeds of one occasion, such as a training step or an evaluation."""

    def __init__(self, run_seed: int, occasion: str | int, samples: int) -> None:
        """`samples` per prompt; the occasion is the step, or a name such as `eval`."""
        self._occasion = f"{run_seed}|{occasion}"
        self._room = 1 << (max(samples, _USUAL_SAMPLES) - 1).bit_length()  # a power of two
        self._upper = _hash(self._occasion) % 2**31
        self._taken: set[int] = set()

    def take(self, problem_id: str, draw: int = 0) -> int:
        """The seed of a prompt's group, below 2^63; another `draw` gives another one.

        The same occasion, problem and draw give the same seed, whatever the rank, engine or batch.
        Seeds taken before matter only if two hashes collide: for n prompts of up to 64 samples with
        a probability of about n²/2^27. Raises UserError for more prompts than there are streams.
        """
        if 2 * len(self._taken) * self._room >= _STREAMS:
            raise UserError(
                f"{len(self._taken)} prompts with up to {self._room} samples use up the sampling "
                "seeds of one step or evaluation; ask for fewer prompts, or fewer samples of each"
            )
        for attempt in count():
            lower = _hash(f"{self._occasion}|{draw}|{attempt}|{problem_id}") % _STREAMS
            lower -= lower % self._room
            if lower not in self._taken:
                break
        self._taken.add(lower)
        return self._upper * _STREAMS + lower


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
