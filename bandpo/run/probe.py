"""Proves that weights arrived: engine and learner give tokens the same log-probabilities."""

from __future__ import annotations

import dataclasses
import math
import sys
from itertools import cycle, islice

import torch

from bandpo.batching import samples_of
from bandpo.errors import UserError
from bandpo.learner.learner import DeepSpeedLearner
from bandpo.model.agreement import Gap, gap_between
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
) -> Gap:
    """The gap of the worst rank, over a few completions of a group; collective.

    There is at least one completion for each copy of the weights; the engine takes `context`
    tokens. Where the gap's mean exceeds `tolerance`, raises UserError after the first sync, of
    weights that the engine had read from the same files, and RuntimeError after a later one.
    """
    count = max(SAMPLES, math.ceil(engine.replicas / ranks.size))
    # vLLM scores a sequence while it generates one token more, which must fit as well.
    shown = probed(group, count, context - 1)
    theirs = engine.logprobs(shown.prompt, shown.completions)
    ours = learner.logprobs(samples_of(shown, [0.0] * count))
    here = torch.tensor(dataclasses.astuple(gap_between(theirs, ours)), device=ranks.device)
    gap = Gap(*ranks.max(here).tolist())
    if gap.mean > tolerance and engine.weight_version == 1:
        raise UserError(
            f"before any update the log-probabilities of engine {engine.name} differ from the "
            f"learner's by {gap.mean:.3g}, more than {tolerance:g}: it computes this model "
            "differently, or the weights did not arrive. "
            f"{likely_settings(learner.lm.config)}. In float32 on a GPU its kernels may multiply "
            "in a lower precision (Triton's do unless TRITON_F32_DEFAULT=ieee). Choose another "
            "engine (rollout=…) or model; rollout.probe_tolerance is for rounding alone"
        )
    if gap.mean > tolerance:
        raise RuntimeError(
            f"after weight sync {engine.weight_version} the engine's log-probabilities differ from "
            f"the learner's by {gap.mean:.3g}, more than {tolerance:g}: the weights did not arrive"
        )
    return gap


def probed(group: Group, count: int, most: int) -> Group:
    """`count` first parts of completions, after as much of the prompt's end as `most` allows.

    A shortened prompt changes the values that are compared, not whether they are equal.
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
