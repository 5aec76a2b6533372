"""The inputs of a method besides the token's own log-probabilities and advantage."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from hydra.utils import instantiate

from bandpo.methods.method import Method, single_tokens
from bandpo.types import TokenBatch


def needs(method: Method) -> list[str]:
    """The method's needs in words, found by trying: those of its file and of its trust region."""
    found = {
        "a reference model": _has_reference(method),
        "the old policy's entropy": _fails_without(method, "entropy"),
        "its group's pass rate": _fails_without(method, "pass_rate"),
        "its query's dual variable": _fails_without(method, "dual"),
        "whole sequences": not method.depends_on_batch and _looks_at_other_tokens(method),
        "the engine's log-probabilities": _reads_the_engine(method),
        "a pass over the batch before the update": method.depends_on_batch,
    }
    return [words for words, needed in found.items() if needed]


def _has_reference(method: Method) -> bool:
    return method.config is not None and bool(instantiate(method.config.loss).needs_reference)


def _fails_without(method: Method, name: str) -> bool:
    """Whether the method refuses a token that lacks one of a batch's optional values."""
    tokens = single_tokens(torch.tensor([0.5]), 1.0, 1.0, entropy=1.0)
    half = 0.5 * tokens.mask
    whole = dataclasses.replace(tokens, pass_rate=half, dual=half, rollout_logp=tokens.old_logp)
    lacking: dict[str, Any] = {name: None}
    return method.missing_inputs(dataclasses.replace(whole, **lacking)) is not None


def _sequence(second_ratio: float) -> TokenBatch:
    """A sequence of two tokens with A < 0, of which the first has the ratio 1."""
    old_logp = torch.tensor([[0.3, 0.3]], dtype=torch.float64).log()
    ones = torch.ones_like(old_logp)
    logp = old_logp + torch.tensor([[1.0, second_ratio]], dtype=torch.float64).log()
    known: dict[str, Any] = {
        "entropy": ones,
        "pass_rate": 0.5 * ones,
        "dual": ones,
        "number": 0 * ones,
    }
    return TokenBatch(logp, old_logp, -ones, ones, rollout_logp=old_logp, **known)


def _looks_at_other_tokens(method: Method) -> bool:
    """Whether a token's gradient depends on the ratio of another one of its sequence."""
    first = {method.judge(_sequence(ratio)).gradient[0, 0].item() for ratio in (1.0, 0.05, 2.5)}
    return len(first) > 1


def _reads_the_engine(method: Method) -> bool:
    """Whether a token's gradient depends on the log-probability that the engine reported."""
    batch = _sequence(1.1)
    assert batch.rollout_logp is not None
    other = dataclasses.replace(batch, rollout_logp=batch.rollout_logp + 1.0)
    return not torch.equal(method.judge(batch).gradient, method.judge(other).gradient)
