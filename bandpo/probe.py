"""The proof that weights arrived: engine and learner give tokens the same log-probabilities."""

from __future__ import annotations

import dataclasses
import math
from itertools import cycle, islice
from typing import Any

import torch

from bandpo.batching import samples_of
from bandpo.errors import UserError
from bandpo.learner.deepspeed import DeepSpeedLearner
from bandpo.learner.ranks import Ranks
from bandpo.model.agreement import largest_gap
from bandpo.model.features import likely_settings
from bandpo.rollout.engine import RolloutEngine
from bandpo.types import Completion, Group, Prompt

SAMPLES, TOKENS = 4, 64


def prove_weights(
    engine: RolloutEngine,
    learner: DeepSpeedLearner,
    group: Group,
    ranks: Ranks,
    tolerance: float,
) -> float:
    """The largest difference, on any rank, over a few completions of a group; collective.

    There is at least one completion for each copy of the weights. Where the difference exceeds
    `tolerance`, raises RuntimeError; after the first sync, of weights that the engine had read from
    the same files, UserError.
    """
    count = max(SAMPLES, math.ceil(engine.replicas / ranks.size))
    completions = [_cut(c) for c in islice(cycle(group.completions), count)]
    probed = dataclasses.replace(group, completions=tuple(completions))
    theirs = engine.logprobs(group.prompt, completions)
    ours = learner.logprobs(samples_of(probed, [0.0] * count))
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


def reference_answers(prompt: Prompt, tokenizer: Any) -> Group:
    """What is probed before there are samples: the problem's own answer."""
    tokens = tuple(tokenizer.encode(prompt.problem.answer, add_special_tokens=False))
    completion = Completion(prompt.problem.answer, tokens, (0.0,) * len(tokens), "stop")
    return Group(prompt, (completion,))


def _cut(completion: Completion) -> Completion:
    return dataclasses.replace(
        completion,
        token_ids=completion.token_ids[:TOKENS],
        logprobs=completion.logprobs[:TOKENS],
    )
