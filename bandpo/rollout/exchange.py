"""Sends every sample to the rank that trains on it, so that no rank ever holds all tokens."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, chain, pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from bandpo.batching import Place, Sample
from bandpo.errors import UserError
from bandpo.ranks.collectives import Ranks
from bandpo.rollout.scoring import GroupSummary

Tokens = tuple[NDArray[np.int32], NDArray[np.float32]]
"""A completion's tokens and their log-probabilities."""


def samples_of_rank(
    groups: Sequence[GroupSummary],
    advantages: Sequence[Sequence[float]],
    schedule: Sequence[Sequence[Sequence[Place]]],
    ranks: Ranks,
) -> list[list[Sample]]:
    """This rank's samples in each minibatch of a schedule; collective.

    `groups` and `advantages` [P, G] are the same on every rank, and so is the schedule
    (`bandpo.batching.schedule`). A sample that several minibatches hold travels once and is one
    object. Raises UserError where the engine has not given every token a log-probability.
    """
    wanted = [_distinct(schedule, rank) for rank in range(ranks.size)]
    tokens = _exchanged(groups, wanted, ranks)
    samples = {
        (i, j): Sample(
            prompt_ids=groups[i].prompt.token_ids,
            completion_ids=token_ids,
            advantage=advantages[i][j],
            rollout_logp=torch.from_numpy(logprobs),
            weight_version=groups[i].weight_versions[j],
            id=f"{groups[i].prompt.problem.id}/{j}",
        )
        for (i, j), (token_ids, logprobs) in tokens.items()
    }
    return [[samples[place] for place in minibatch[ranks.rank]] for minibatch in schedule]


def _distinct(schedule: Sequence[Sequence[Sequence[Place]]], rank: int) -> list[Place]:
    """The places that a rank trains on in any minibatch, each once, in order."""
    return list(dict.fromkeys(chain.from_iterable(minibatch[rank] for minibatch in schedule)))


def _exchanged(
    groups: Sequence[GroupSummary], wanted: Sequence[Sequence[Place]], ranks: Ranks
) -> dict[Place, Tokens]:
    """The tokens of the places that this rank wants; `wanted` are those of every rank.

    Samples that stay are not copied. Beyond them a rank needs memory for what it receives, and for
    the half of what it sends that travels at a time: at most one and a half times its own share.
    """
    here = ranks.rank
    found = {
        place: _tokens_here(groups, place) for place in wanted[here] if _on(here, groups, place)
    }
    leaving = [
        [] if rank == here else [place for place in places if _on(here, groups, place)]
        for rank, places in enumerate(wanted)
    ]
    coming = [
        [] if rank == here else [place for place in wanted[here] if _on(rank, groups, place)]
        for rank in range(ranks.size)
    ]
    counts = [_count(groups, p) for p in leaving], [_count(groups, p) for p in coming]
    sent = [_tokens_here(groups, place) for place in chain(*leaving)]
    ids = ranks.exchange([torch.from_numpy(row) for row, _ in sent], *counts, torch.int32)
    logprobs = ranks.exchange([torch.from_numpy(row) for _, row in sent], *counts, torch.float32)
    places = list(chain(*coming))
    ends = [0, *accumulate(groups[i].lengths[j] for i, j in places)]
    for place, (begin, end) in zip(places, pairwise(ends), strict=True):
        found[place] = ids[begin:end].numpy(), logprobs[begin:end].numpy()
    return found


def _on(rank: int, groups: Sequence[GroupSummary], place: Place) -> bool:
    return groups[place[0]].rank == rank


def _count(groups: Sequence[GroupSummary], places: Sequence[Place]) -> int:
    return sum(groups[i].lengths[j] for i, j in places)


def _tokens_here(groups: Sequence[GroupSummary], place: Place) -> Tokens:
    """Raises UserError where the engine has not given every token a log-probability."""
    held = groups[place[0]].here
    assert held is not None
    completion = held.group.completions[place[1]]
    if len(completion.token_ids) != len(completion.logprobs):
        raise UserError(
            f"rollout.engine gave {len(completion.logprobs)} log-probabilities for the "
            f"{len(completion.token_ids)} tokens of {held.group.problem.id}/{place[1]}: it must "
            "give one for each"
        )
    return completion.token_ids, completion.logprobs
