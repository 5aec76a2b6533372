"""Votes for a majority: answers as strings, or grouped by the verifier's equality."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations

from bandpo.evaluation.samples import Sample

MOST_COMPARED = 32
"""Different wrong answers of a problem that are compared with each other, the most frequent first.

A vote among n samples has at most n(n − 1)/2 pairs, 496 here; answers beyond these few have single
votes and stay strings.
"""
Equal = Callable[[Sequence[tuple[str, str]]], list[bool]]
"""Whether each pair of answers is equal."""
Votes = list[list[str | None]]
"""Each sample's vote by problem; None abstains."""


def vote(sample: Sample) -> str | None:
    """A sample's answer without white space; None abstains.

    Where a reward extracts no answers (a function), all wrong samples count as one.
    """
    answer = "".join((sample.extracted or "").split())
    return answer if answer or sample.status == "wrong" else None


def votes_by_string(groups: Sequence[Sequence[Sample]]) -> Votes:
    """The samples' votes, equal where they are the same string."""
    return [[vote(sample) for sample in group] for group in groups]


def votes_by_equality(groups: Sequence[Sequence[Sample]], equal: Equal) -> Votes:
    """The samples' votes, where equal wrong answers are one.

    Of wrong answers of a problem every two are compared, the rarer one with the more frequent as
    its reference, and those that a chain of equalities joins become one vote. Right answers are
    one vote in any case. Answers on which the verifier had failed (timeout, crash) stay strings.
    """
    votes = votes_by_string(groups)
    texts = [_wrong_answers(group) for group in groups]
    pairs = [
        (index, first, second)
        for index, answers in enumerate(texts)
        for first, second in combinations(answers, 2)
    ]
    found = equal([(texts[index][second], texts[index][first]) for index, first, second in pairs])
    leaders: list[dict[str, str]] = [{name: name for name in answers} for answers in texts]
    for (index, first, second), same in zip(pairs, found, strict=True):
        if same:
            _join(leaders[index], first, second)
    return [
        [one if one is None else _leader(leader, one) for one in row]
        for leader, row in zip(leaders, votes, strict=True)
    ]


def _wrong_answers(group: Sequence[Sample]) -> dict[str, str]:
    """Wrong votes with an answer as it was extracted, the most frequent first."""
    written: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for sample in group:
        name = vote(sample)
        if name and sample.extracted and sample.status == "wrong":
            counts[name] += 1
            written.setdefault(name, sample.extracted)
    return {name: written[name] for name, _ in counts.most_common(MOST_COMPARED)}


def _leader(leaders: dict[str, str], name: str) -> str:
    """The vote that stands for the group of this one."""
    while leaders.get(name, name) != name:
        name = leaders[name]
    return name


def _join(leaders: dict[str, str], first: str, second: str) -> None:
    leaders[_leader(leaders, second)] = _leader(leaders, first)
