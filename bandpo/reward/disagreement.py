"""Where two rewards score the same completions differently: counts and examples."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bandpo.reward.futures import gather, then
from bandpo.reward.score import Closing, Reward, Score, checked, part_name

if TYPE_CHECKING:
    from bandpo.types import Group

_KEPT_EXAMPLES = 200
_SHOWN_TAIL = 160


@dataclass(frozen=True)
class Disagreement:
    """One completion that exactly one of two rewards scored correct."""

    problem_id: str
    gold: str
    completion: str
    scores: tuple[Score, Score]


@dataclass
class DisagreementReport:
    """Counts of (first correct, second correct), and the first disagreements as examples."""

    names: tuple[str, str] = ("math", "release")
    counts: Counter[tuple[bool, bool]] = field(default_factory=Counter)
    statuses: Counter[tuple[str, str]] = field(default_factory=Counter)
    examples: list[Disagreement] = field(default_factory=list)

    @property
    def total(self) -> int:
        """Completions compared."""
        return self.counts.total()

    @property
    def disagreements(self) -> int:
        """Completions that exactly one reward scored correct."""
        return self.counts[True, False] + self.counts[False, True]

    def add(self, group: Group, first: list[Score], second: list[Score]) -> None:
        """Counts a group."""
        for completion, *scores in zip(group.completions, first, second, strict=True):
            one, other = scores
            self.counts[one.correct, other.correct] += 1
            if one.correct == other.correct:
                continue
            self.statuses[one.reason, other.reason] += 1
            if len(self.examples) < _KEPT_EXAMPLES:
                problem = group.problem
                self.examples.append(
                    Disagreement(problem.id, problem.answer, completion.text, (one, other))
                )

    def summary(self) -> dict[str, Any]:
        """The counts under their names in a JSON file."""
        one, other = self.names
        return {
            "completions": self.total,
            "both_correct": self.counts[True, True],
            "both_wrong": self.counts[False, False],
            f"only_{one}_correct": self.counts[True, False],
            f"only_{other}_correct": self.counts[False, True],
            "by_status": {" / ".join(pair): n for pair, n in self.statuses.most_common()},
        }

    def render(self, examples: int = 10) -> str:
        """The report as plain text."""
        one, other = self.names
        share = self.disagreements / self.total if self.total else 0.0
        lines = [
            f"{one} against {other}: {self.total} completions, {self.disagreements} "
            f"scored differently ({share:.1%})",
            f"  only {one} finds correct:  {self.counts[True, False]}",
            f"  only {other} finds correct:  {self.counts[False, True]}",
            f"  both correct: {self.counts[True, True]}, neither: {self.counts[False, False]}",
        ]
        lines += [f"  {n:6d} x {a} / {b}" for (a, b), n in self.statuses.most_common()]
        for example in self.examples[:examples]:
            tail = " ".join(example.completion[-_SHOWN_TAIL:].split())
            lines += [
                f"- problem {example.problem_id}, reference {example.gold!r}",
                *(
                    f"    {name}: {score.reason}, read {score.extracted!r}"
                    for name, score in zip(self.names, example.scores, strict=True)
                ),
                f"    … {tail}",
            ]
        return "\n".join(lines)


class Compared(Closing):
    """The first reward, with a report on where the second one scores differently."""

    def __init__(
        self, first: Reward, second: Reward, names: tuple[str, str] = ("math", "release")
    ) -> None:
        self.first, self.second = first, second
        self.name = part_name(first)
        self.report = DisagreementReport(names=tuple(names))  # type: ignore[arg-type]
        self._lock = threading.Lock()

    def submit(self, group: Group) -> Future[list[Score]]:
        """Starts both; the future holds the scores of the first."""

        def record(scores: list[list[Score]]) -> list[Score]:
            first = list(checked(scores[0], self.first, group))
            second = list(checked(scores[1], self.second, group))
            with self._lock:
                self.report.add(group, first, second)
            return first

        return then(gather([self.first.submit(group), self.second.submit(group)]), record)

    def close(self) -> None:
        """Ends both."""
        self.first.close()
        self.second.close()


def disagreement_report(
    groups: Iterable[Group], first: Reward, second: Reward, names: tuple[str, str]
) -> DisagreementReport:
    """Scores groups, fresh or read from saved samples, with both rewards and compares them."""
    compared = Compared(first, second, names)
    gather([compared.submit(group) for group in groups]).result()
    return compared.report
