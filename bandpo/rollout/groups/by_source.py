"""A step's groups by the source of their problems."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean

from bandpo.rollout.scoring import GroupSummary


def source_metrics(drawn: Sequence[GroupSummary], sources: Iterable[str]) -> dict[str, float]:
    """`source/<name>/…` of the groups drawn for a step, for each of these sources.

    `share` of the groups; `reward` and `accuracy`: means over the samples, if there are any.
    """
    found: dict[str, float] = {}
    for source in sources:
        own = [item for item in drawn if item.prompt.problem.source == source]
        scores = [score for item in own for score in item.scores]
        found[f"source/{source}/share"] = len(own) / len(drawn)
        if scores:
            found[f"source/{source}/reward"] = fmean(score.value for score in scores)
            found[f"source/{source}/accuracy"] = fmean(score.correct for score in scores)
    return found
