"""Sampling seeds that depend on the run, the occasion and the problem, and on nothing else."""

from __future__ import annotations

import hashlib

# vLLM seeds sample i of a request with seed + i, so two prompts whose seeds lie closer than the
# group size would share samples. A multiple of this spacing leaves room for every group size.
SPACING = 4096
_SEEDS = 2**63 // SPACING


def prompt_seed(run_seed: int, occasion: str | int, problem_id: str) -> int:
    """The seed of a prompt's group: a hash of (run seed, occasion, problem id), below 2^63.

    `occasion` is the training step, or a name such as `eval`. The same triple always gives the
    same seed, whichever rank, engine or batch the prompt lands in; different triples are at
    least 4,096 apart unless they collide, with probability 2^-51 a pair.
    """
    digest = hashlib.sha256(f"{run_seed}|{occasion}|{problem_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % _SEEDS * SPACING
