"""The inputs of a method besides the token's own log-probabilities and advantage."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from hydra.utils import instantiate

from bandpo.loss.statistic import asking_parts
from bandpo.methods.method import Method, single_tokens
from bandpo.types import TokenBatch


def needs(method: Method) -> list[str]:
    """The method's needs in words, found by trying: those of its file and of its trust region."""
    asks = bool(asking_parts(method.loss))
    found = {
        "a reference model": _has_reference(method),
        "the old policy's entropy": _lacks(method, entropy=None),
        "the group's pass rate": _lacks(method, pass_rate=None),
        "the group's dual variable": _lacks(method, dual=None),
        "whole sequences": not asks and _looks_at_other_tokens(method),
        "the engine's log-probabilities": _reads_the_engine(method),
        "a statistic of the whole batch": asks,
    }
    return [words for words, needed in found.items() if needed]


def _has_reference(method: Method) -> bool:
    return method.config is not None and bool(instantiate(method.config.loss).needs_reference)


def _lacks(method: Method, **without: Any) -> bool:
    """Whether the method cannot judge a token that is known but for these inputs."""
    known = dataclasses.replace(single_tokens(torch.tensor([0.5]), 1.0, 1.0, 1.0), **without)
    return method.missing_inputs(known) is not None


def _sequence(second_ratio: float) -> TokenBatch:
    """A sequence of two tokens with A < 0, of which the first has the ratio 1."""
    old_logp = torch.tensor([[0.3, 0.3]], dtype=torch.float64).log()
    ones = torch.ones_like(old_logp)
    logp = old_logp + torch.tensor([[1.0, second_ratio]], dtype=torch.float64).log()
    return TokenBatch(
        *(logp, old_logp, -ones, ones),
        entropy=ones,
        rollout_logp=old_logp,
        pass_rate=ones / 2,
        dual=ones,
        number=0 * ones,
    )


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
