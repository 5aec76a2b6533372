"""Whether two computations of one network give tokens the same log-probabilities."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

TOLERANCE = {"float32": 1e-3, "bfloat16": 0.3}
"""Largest difference of a token's log-probabilities in two implementations of one network."""


def largest_gap(theirs: Sequence[Sequence[float]], ours: Sequence[Sequence[float]]) -> float:
    """The largest |difference| of a token's values; infinity where one is NaN, 0 without tokens.

    A NaN is neither larger nor smaller than a number: `max` alone may skip it.
    """
    pairs = (pair for rows in zip(theirs, ours, strict=True) for pair in zip(*rows, strict=True))
    gaps = (abs(a - b) for a, b in pairs)
    return max((math.inf if math.isnan(gap) else gap for gap in gaps), default=0.0)


@torch.no_grad()
def own_logprobs(lm: Any, prompt: Sequence[int], completion: Sequence[int]) -> list[float]:
    """Log-probabilities of a completion's tokens as the transformers model itself computes them.

    At temperature 1, the sequence alone, with eager attention, which omits no feature of a model.
    """
    tokens = torch.tensor([[*prompt, *completion]], device=lm.device)
    with _eager(lm):
        logits = lm(input_ids=tokens, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
    chosen = tokens[0, len(prompt) :, None]
    return logits.log_softmax(-1).gather(-1, chosen).squeeze(-1).tolist()


@contextmanager
def _eager(lm: Any) -> Iterator[None]:
    usual = lm.config._attn_implementation
    lm.set_attn_implementation("eager")
    try:
        yield
    finally:
        lm.set_attn_implementation(usual)
