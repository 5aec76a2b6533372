"""Whether two computations of one network give tokens the same log-probabilities."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

TOLERANCE = {"float32": 3e-4, "bfloat16": 0.1}
"""Mean |difference| of a sequence's log-probabilities in two implementations of one network.

A mean, since one token says little in bfloat16: a logit between 32 and 64 moves in steps of 0.25.
"""
FEWEST = 16
"""Tokens that a mean is over at least; a shorter sequence counts the missing ones as equal."""


@dataclass(frozen=True)
class Gap:
    """How far two computations are apart; infinite where a log-probability is NaN.

    `mean` is a sequence's mean |difference|, that of the worst sequence: a copy of the weights
    that scored one of many is not averaged away. `largest` is that of the worst token.
    """

    mean: float
    largest: float


def gap_between(theirs: Sequence[Sequence[float]], ours: Sequence[Sequence[float]]) -> Gap:
    """The gap between two computations of the same sequences' tokens; 0 without any."""
    rows = [_differences(*pair) for pair in zip(theirs, ours, strict=True)]
    return Gap(
        mean=max((sum(row) / max(len(row), FEWEST) for row in rows), default=0.0),
        largest=max((difference for row in rows for difference in row), default=0.0),
    )


def _differences(theirs: Sequence[float], ours: Sequence[float]) -> list[float]:
    """A NaN compares as neither larger nor smaller: a maximum may pass over it."""
    found = (abs(a - b) for a, b in zip(theirs, ours, strict=True))
    return [math.inf if math.isnan(difference) else difference for difference in found]


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


@torch.no_grad()
def own_text(lm: Any, rows: int, length: int) -> list[list[int]]:
    """Sequences of `length` tokens that the transformers model itself draws after its first token.

    At temperature 0.5: what a policy says often. In bfloat16 two correct attentions differ by
    several nats where a pretrained model reads tokens that it never would have written.
    """
    text_config = lm.config.get_text_config()
    first = text_config.bos_token_id
    if not (isinstance(first, int) and 0 <= first < text_config.vocab_size):
        first = 0
    random = torch.Generator(lm.device).manual_seed(0)
    tokens = torch.full((rows, 1), first, device=lm.device)
    with _eager(lm):
        while tokens.shape[1] < length:
            logits = lm(input_ids=tokens, use_cache=False).logits[:, -1].float()
            drawn = torch.multinomial((logits / 0.5).softmax(-1), 1, generator=random)
            tokens = torch.cat([tokens, drawn], dim=1)
    return tokens.tolist()


@contextmanager
def _eager(lm: Any) -> Iterator[None]:
    usual = lm.config._attn_implementation
    lm.set_attn_implementation("eager")
    try:
        yield
    finally:
        lm.set_attn_implementation(usual)
