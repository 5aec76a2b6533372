"""Sends every sample to the rank that trains on it, so that no rank ever holds all tokens."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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
    (`bandpo.batching.schedule`). A sample that several minibatches hold is one object.
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

    Samples that stay are not copied. Beyond them a rank needs memory for what it sends and for what
    it receives, 8 bytes a token: about its own share twice.
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
    received = ranks.exchange(
        [part for place in chain(*leaving) for part in _packed(*_tokens_here(groups, place))],
        [2 * _length(groups, places) for places in leaving],
        [2 * _length(groups, places) for places in coming],
    )
    row, begin = received.numpy(), 0
    for i, j in chain(*coming):
        middle, end = begin + groups[i].lengths[j], begin + 2 * groups[i].lengths[j]
        found[i, j] = row[begin:middle], row[middle:end].view(np.float32)
        begin = end
    return found


def _on(rank: int, groups: Sequence[GroupSummary], place: Place) -> bool:
    return groups[place[0]].rank == rank


def _length(groups: Sequence[GroupSummary], places: Sequence[Place]) -> int:
    return sum(groups[i].lengths[j] for i, j in places)


def _tokens_here(groups: Sequence[GroupSummary], place: Place) -> Tokens:
    held = groups[place[0]].here
    assert held is not None
    completion = held.group.completions[place[1]]
    return completion.token_ids, completion.logprobs


def _packed(token_ids: NDArray[np.int32], logprobs: NDArray[np.float32]) -> tuple[Tensor, Tensor]:
    """Both as int32, bit for bit."""
    if len(token_ids) != len(logprobs):
        raise UserError(
            f"rollout.engine gave {len(logprobs)} log-probabilities for {len(token_ids)} tokens of "
            "a sample: one is needed for each"
        )
    return torch.from_numpy(token_ids), torch.from_numpy(logprobs.view(np.int32))
