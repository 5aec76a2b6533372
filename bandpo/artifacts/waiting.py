"""The rollout that waits for the next step, as a checkpoint keeps it without any loss.

    rollout-rank0.json          a rank's groups with their places, prompts, texts and scores
    rollout-rank0.safetensors   the tokens and log-probabilities of all their completions

Earlier versions wrote the JSON alone, with tokens and log-probabilities inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter
from safetensors.numpy import load_file, save

from bandpo.ranks.collectives import Ranks
from bandpo.reward import Score
from bandpo.rollout.draws import Rollout, rollout_metrics
from bandpo.rollout.scoring import GroupSummary, ScoredGroup
from bandpo.types import Completion, FinishReason, Group, Prompt, logprob_array, token_array

_Values = list[np.ndarray]


@dataclass(frozen=True)
class _Completion:
    """`tokens` is how many there are; `token_ids` and `logprobs` are those of earlier versions."""

    text: str
    finish_reason: FinishReason
    weight_version: int = 0
    tokens: int = 0
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class _Group:
    prompt: Prompt
    completions: list[_Completion]


@dataclass(frozen=True)
class _Scored:
    """`place` is the group's among those of all ranks; earlier versions dealt them out in turn."""

    group: _Group
    scores: tuple[Score, ...]
    place: int | None = None


@dataclass(frozen=True)
class _Share:
    groups: list[_Scored]
    metrics: dict[str, float] = field(default_factory=dict)


# The earliest checkpoints kept the groups alone.
_SHARE: TypeAdapter[_Share | list[_Scored]] = TypeAdapter(_Share | list[_Scored])


def write_rollout(folder: Path, ranks: Ranks, rollout: Rollout) -> None:
    """Writes the groups that this rank holds; raises OSError where the disk refuses."""
    held = [(place, item.here) for place, item in enumerate(rollout.groups) if item.here]
    completions = [c for _, item in held for c in item.group.completions]
    arrays = {
        "token_ids": _joined([c.token_ids for c in completions], np.int32),
        "logprobs": _joined([c.logprobs for c in completions], np.float32),
    }
    share = _Share([_saved(item, place) for place, item in held], rollout.metrics)
    path = folder / f"rollout-rank{ranks.rank}.json"
    path.with_suffix(".safetensors").write_bytes(save(arrays))
    path.write_bytes(_SHARE.dump_json(share, exclude_defaults=True))


def _joined(rows: _Values, dtype: type[np.generic]) -> np.ndarray:
    return np.concatenate([np.empty(0, dtype), *rows])


def _saved(item: ScoredGroup, place: int) -> _Scored:
    completions = [
        _Completion(c.text, c.finish_reason, c.weight_version, len(c.token_ids))
        for c in item.group.completions
    ]
    return _Scored(_Group(item.group.prompt, completions), item.scores, place)


def read_rollout(folder: Path, ranks: Ranks) -> Rollout | None:
    """The rollout that a checkpoint's ranks wrote, in its order; None if there is none.

    Every rank reads who wrote what, one file after another, and keeps the tokens and texts of its
    own files alone: those of its number, and of others in turn where there were more ranks.
    """
    files = [folder / f"rollout-rank{rank}.json" for rank in range(_count(folder))]
    placed: dict[int, GroupSummary] = {}
    metrics: dict[str, float] | None = None
    for number, file in enumerate(files):
        read = _SHARE.validate_json(file.read_bytes())
        share = read if isinstance(read, _Share) else _Share(read)
        if number == 0 and isinstance(read, _Share):
            metrics = read.metrics
        owner = number % ranks.size
        groups = _groups(share.groups, file) if owner == ranks.rank else None
        for index, item in enumerate(share.groups):
            place = number + index * len(files) if item.place is None else item.place
            held = groups[index] if groups else None
            placed[place] = _summary(item, owner, held)
    if not files:
        return None
    found = [placed[place] for place in sorted(placed)]
    return Rollout(found, rollout_metrics(found) if metrics is None else metrics)


def _count(folder: Path) -> int:
    return len(list(folder.glob("rollout-rank*.json")))


def _groups(saved: Sequence[_Scored], file: Path) -> list[ScoredGroup]:
    """The groups of a file, with the arrays beside it where there are any."""
    completions = [c for item in saved for c in item.group.completions]
    arrays = file.with_suffix(".safetensors")
    if arrays.exists():
        found = load_file(arrays)
        ends = [0, *accumulate(c.tokens for c in completions)]
        rows = [(found["token_ids"][a:b], found["logprobs"][a:b]) for a, b in pairwise(ends)]
    else:
        rows = [(token_array(c.token_ids), logprob_array(c.logprobs)) for c in completions]
    made = iter(
        Completion(c.text, *row, c.finish_reason, c.weight_version)
        for c, row in zip(completions, rows, strict=True)
    )
    return [
        ScoredGroup(
            Group(item.group.prompt, tuple(next(made) for _ in item.group.completions)), item.scores
        )
        for item in saved
    ]


def _summary(item: _Scored, rank: int, held: ScoredGroup | None) -> GroupSummary:
    if held is not None:
        return held.summary(rank)
    completions = item.group.completions
    return GroupSummary(
        prompt=item.group.prompt,
        lengths=tuple(c.tokens or len(c.token_ids) for c in completions),
        truncated=tuple(c.finish_reason == "length" for c in completions),
        weight_versions=tuple(c.weight_version for c in completions),
        scores=tuple(replace(score, extracted=None) for score in item.scores),
        rank=rank,
    )
