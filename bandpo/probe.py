"""The proof that weights arrived: engine and learner give tokens the same log-probabilities."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Sequence
from itertools import cycle, islice

import torch

from bandpo.batching import samples_of
from bandpo.learner.deepspeed import DeepSpeedLearner
from bandpo.learner.ranks import Ranks
from bandpo.rollout.engine import RolloutEngine
from bandpo.types import Completion, Group

SAMPLES, TOKENS = 4, 64
EXPORT_PROBE = 128
"""Tokens of the sequence that shows whether an export is the learner's model."""
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.3}
"""Largest difference of a token's log-probabilities in two implementations of one network."""


def prove_weights(
    engine: RolloutEngine,
    learner: DeepSpeedLearner,
    group: Group,
    ranks: Ranks,
    tolerance: float,
    context: int = sys.maxsize,
) -> float:
    """The largest difference, on any rank, over a few completions of a group; collective.

    There is at least one completion for each copy of the weights; `context` are the tokens that
    the engine takes. Raises RuntimeError where the difference exceeds `tolerance`.
    """
    count = max(SAMPLES, math.ceil(engine.replicas / ranks.size))
    # vLLM scores a sequence while it generates one token more, which must fit as well.
    shown = probed(group, count, context - 1)
    theirs = engine.logprobs(shown.prompt, shown.completions)
    ours = learner.logprobs(samples_of(shown, [0.0] * count))
    gap = float(ranks.max(torch.tensor(_largest_gap(theirs, ours), device=ranks.device)))
    if gap > tolerance:
        raise RuntimeError(
            f"after weight sync {engine.weight_version} the engine's log-probabilities differ from "
            f"the learner's by {gap:.3g}, more than {tolerance:g}: the weights did not arrive"
        )
    return gap


def _largest_gap(theirs: Sequence[Sequence[float]], ours: Sequence[Sequence[float]]) -> float:
    """The largest |difference| of a token's values; infinity where one is NaN.

    A NaN compares as neither larger nor smaller: a maximum may pass over it.
    """
    pairs = (pair for rows in zip(theirs, ours, strict=True) for pair in zip(*rows, strict=True))
    gaps = (abs(a - b) for a, b in pairs)
    return max(math.inf if math.isnan(gap) else gap for gap in gaps)


def probed(group: Group, count: int, most: int) -> Group:
    """`count` beginnings of completions, after as much of the prompt's end as `most` tokens allow.

    What is left out of a prompt changes what the probe compares, and not whether it is equal.
    """
    room = max(1, min(TOKENS, most - 1))
    completions = tuple(_cut(c, room) for c in islice(cycle(group.completions), count))
    left = max(1, most - max(len(c.token_ids) for c in completions))
    prompt = dataclasses.replace(group.prompt, token_ids=group.prompt.token_ids[-left:])
    return Group(prompt, completions)


def _cut(completion: Completion, room: int) -> Completion:
    return dataclasses.replace(
        completion, token_ids=completion.token_ids[:room], logprobs=completion.logprobs[:room]
    )
