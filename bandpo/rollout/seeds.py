"""Sampling seeds that depend on the run, the occasion and the problem, and hardly on anything else.

Which bits of a seed make a stream of random numbers is the sampler's matter: torch's generator on
a CPU takes the lower 32, on a GPU all 64, and a sampler of vLLM's hashes all 64 to 32. vLLM gives
sample i of a prompt the seed + i. So all prompts of an occasion have the same upper half, and
lower halves that are apart by more than their samples: then no two samples share a stream.
"""

from __future__ import annotations

import hashlib
from itertools import count

from bandpo.errors import UserError

# Groups of up to so many samples have the same seeds, whatever their size.
_USUAL_SAMPLES = 64
_STREAMS = 2**32


class Seeds:
    """Hands out the seeds of one occasion, such as a training step or an evaluation."""

    def __init__(self, run_seed: int, occasion: str | int, samples: int) -> None:
        """`samples` a prompt; the occasion is the step, or a name such as `eval`."""
        self._occasion = f"{run_seed}|{occasion}"
        self._room = 1 << (max(samples, _USUAL_SAMPLES) - 1).bit_length()  # a power of two
        self._upper = _hash(self._occasion) % 2**31
        self._taken: set[int] = set()

    def take(self, problem_id: str, draw: int = 0) -> int:
        """The seed of a prompt's group, below 2^63; of a further one with another `draw`.

        The same occasion, problem and draw give the same seed, whichever rank, engine or batch
        the prompt lands in. What was taken before matters only where two hashes collide: for n
        prompts of up to 64 samples with a probability of about n²/2^27. Raises UserError for
        more prompts than there are streams for.
        """
        if 2 * len(self._taken) * self._room >= _STREAMS:
            raise UserError(
                f"{len(self._taken)} prompts with up to {self._room} samples are as many as have "
                "random numbers of their own; ask for fewer prompts, or fewer samples of each"
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
