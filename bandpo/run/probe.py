"""The proof that weights arrived: engine and learner give tokens the same log-probabilities."""

from __future__ import annotations

import dataclasses
import math
import sys
from itertools import cycle, islice

import torch

from bandpo.batching import samples_of
from bandpo.errors import UserError
from bandpo.learner.learner import DeepSpeedLearner
from bandpo.model.agreement import largest_gap
from bandpo.model.features import likely_settings
from bandpo.ranks.collectives import Ranks
from bandpo.rollout.engine import RolloutEngine
from bandpo.types import Completion, Group

SAMPLES, TOKENS = 4, 64
EXPORT_PROBE = 128
"""Tokens of the sequence that shows whether an export is the learner's model."""


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
    the engine takes. Where the difference exceeds `tolerance`, raises RuntimeError; after the first
    sync, of weights that the engine had read from the same files, UserError.
    """
    count = max(SAMPLES, math.ceil(engine.replicas / ranks.size))
    # vLLM scores a sequence while it generates one token more, which must fit as well.
    shown = probed(group, count, context - 1)
    theirs = engine.logprobs(shown.prompt, shown.completions)
    ours = learner.logprobs(samples_of(shown, [0.0] * count))
    gap = float(ranks.max(torch.tensor(largest_gap(theirs, ours), device=ranks.device)))
    if gap > tolerance and engine.weight_version == 1:
        raise UserError(
            f"before any update the log-probabilities of engine {engine.name} differ from the "
            f"learner's by {gap:.3g}, more than {tolerance:g}: it computes this model otherwise, "
            f"or the weights did not arrive. {likely_settings(learner.lm.config)}. Choose another "
            "engine (rollout=…) or model; rollout.probe_tolerance is for differences of rounding"
        )
    if gap > tolerance:
        raise RuntimeError(
            f"after weight sync {engine.weight_version} the engine's log-probabilities differ from "
            f"the learner's by {gap:.3g}, more than {tolerance:g}: the weights did not arrive"
        )
    return gap


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
