"""The scored groups of a step as this rank's minibatches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from bandpo.advantage import dual_variables
from bandpo.batching import Minibatch, Place, prune, schedule
from bandpo.config.schema import Config
from bandpo.ranks.collectives import Ranks
from bandpo.rollout.exchange import samples_of_rank
from bandpo.rollout.groups.truncation import Truncation
from bandpo.rollout.scoring import GroupSummary, advantages_of
from bandpo.types import BatchTotals


def minibatches_of(
    config: Config,
    estimate: Callable[..., Tensor],
    cost: Callable[[int], float],
    ranks: Ranks,
    scored: Sequence[GroupSummary],
    step: int,
) -> list[Minibatch]:
    """This rank's part of the minibatches of a step's updates, of all ranks' groups.

    `estimate` gives the advantages of rewards [P, G], `cost` that of a sequence by its tokens.
    Samples that are pruned (`learner.prune`) are sent to no rank. Collective.
    """
    groups = [item for item in scored if item.usable]
    rollout, learner, seed = config.rollout, config.learner, f"{config.seed}/{step}"
    truncation = Truncation.of(rollout)
    masked = truncation.masked_places(groups)
    estimator = truncation.estimator(estimate, groups)
    advantages = advantages_of(estimator, groups, rollout.group_size)
    ids = [[f"{item.prompt.problem.id}/{j}" for j in range(len(item.lengths))] for item in groups]
    pruned, weights = prune(advantages, ids, learner.prune, seed, masked)
    plan = partial(
        schedule,
        [[len(item.prompt.token_ids) + n for n in item.lengths] for item in groups],
        cost,
        updates=learner.updates_per_rollout,
        epochs=learner.epochs_per_rollout,
        seed=seed,
        ranks=ranks.size,
    )
    kept = plan(masked=masked | pruned)
    batches = samples_of_rank(groups, advantages, kept, ranks)
    duals = _duals(estimator, groups, rollout.group_size)
    for minibatch, samples in zip(kept, batches, strict=True):
        for place, sample in zip(minibatch[ranks.rank], samples, strict=True):
            group = groups[place[0]]
            sample.pass_rate = sum(score.correct for score in group.scores) / len(group.scores)
            sample.dual = None if duals is None else duals[place[0]]
            sample.weight = weights.get(place)
    if not pruned:
        return [Minibatch(samples) for samples in batches]
    every = {(i, j) for i, item in enumerate(groups) for j in range(len(item.lengths))}
    gone = plan(masked=every - pruned)
    return [
        Minibatch(samples, _counts(groups, left[ranks.rank]), _share(left, here))
        for samples, left, here in zip(batches, gone, kept, strict=True)
    ]


def _duals(
    estimator: Callable[..., Tensor], groups: Sequence[GroupSummary], group_size: int
) -> list[float] | None:
    rewards = torch.tensor([item.rewards for item in groups]).reshape(-1, group_size)
    found = dual_variables(estimator, rewards)
    return None if found is None else found.tolist()


def _counts(groups: Sequence[GroupSummary], places: Sequence[Place]) -> BatchTotals:
    """Sequences and completion tokens of some samples."""
    tokens = sum(groups[i].lengths[j] for i, j in places)
    return BatchTotals(float(len(places)), float(tokens))


def _share(gone: Sequence[Sequence[Place]], kept: Sequence[Sequence[Place]]) -> float:
    """Of the samples of a minibatch, by rank, the share that is gone."""
    count = sum(map(len, gone))
    return count / max(count + sum(map(len, kept)), 1)
