"""The pass rates of each problem so far, as `problems.jsonl` keeps them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bandpo.errors import UserError

PROBLEMS = "problems.jsonl"
"""The file of a run, and of each of its checkpoints."""
RECENT = 16
"""Pass rates that are kept of each problem."""


@dataclass(frozen=True)
class Results:
    """The groups that were drawn for one problem.

    seen               how many groups
    samples, correct   of all of them together
    step               that of the last one
    recent             pass rates of the last ones, at most `RECENT`, the newest last
    """

    seen: int = 0
    samples: int = 0
    correct: int = 0
    step: int = 0
    recent: tuple[float, ...] = ()

    @property
    def pass_rate(self) -> float | None:
        """The share of right answers in the last group; None before the first."""
        return self.recent[-1] if self.recent else None

    @property
    def mean_pass_rate(self) -> float | None:
        """The share of right answers in all groups; None before the first."""
        return self.correct / self.samples if self.samples else None

    def in_a_row(self, holds: Callable[[float], bool]) -> int:
        """How many of the last groups in a row had a pass rate for which `holds` is true."""
        count = 0
        for rate in reversed(self.recent):
            if not holds(rate):
                break
            count += 1
        return count

    def after(self, correct: Sequence[bool], step: int) -> Results:
        """These results and a group's of a step, by the verdict on each of its samples."""
        rate = sum(correct) / len(correct)
        return Results(
            seen=self.seen + 1,
            samples=self.samples + len(correct),
            correct=self.correct + sum(correct),
            step=step,
            recent=(*self.recent, rate)[-RECENT:],
        )


UNSEEN = Results()


class History:
    """The results of every problem, of all steps up to and including `step`, the last one.

    The prompts of a step are drawn from those of the steps before it, whatever `rollout.lag`: a
    step's groups are recorded when the last one is scored, and the next step is drawn afterwards.
    """

    def __init__(self, results: Mapping[str, Results] | None = None, step: int = 0) -> None:
        self._results, self.step = dict(results or {}), step

    def of(self, id: str) -> Results:
        """The results of a problem."""
        return self._results.get(id, UNSEEN)

    def record(self, groups: Iterable[tuple[str, Sequence[bool]]], step: int) -> None:
        """Adds the groups of a step: a problem's id, and the verdict on each sample."""
        for id, correct in groups:
            self._results[id] = self.of(id).after(correct, step)
        self.step = step

    def copy(self) -> History:
        """The history as it is now."""
        return History(self._results, self.step)

    def restore(self, other: History) -> None:
        """Takes over what another one holds."""
        self._results, self.step = dict(other._results), other.step

    def lines(self, describe: Callable[[str], Mapping[str, Any]]) -> str:
        """A line of JSON for every problem seen, in the order of their ids.

        `describe` gives further values of a problem.
        """
        return "".join(
            json.dumps(_row(id, self._results[id], describe(id)), ensure_ascii=False) + "\n"
            for id in sorted(self._results)
        )

    @classmethod
    def read(cls, path: Path) -> History:
        """The history that a file of `lines` holds; an empty one where there is no such file.

        Checkpoints of earlier versions have none. Raises UserError for a line that is not one of
        `lines`.
        """
        results = {}
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        for number, line in enumerate(text.splitlines(), start=1):
            try:
                row = json.loads(line)
                counts = {name: int(row[name]) for name in ("seen", "samples", "correct", "step")}
                recent = tuple(map(float, row["recent"]))
                results[str(row["id"])] = Results(**counts, recent=recent)
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"{path}, line {number}: not a problem's results ({type(error).__name__}: "
                    f"{error}); resume from another checkpoint (trainer.resume=<folder>)"
                ) from None
        return cls(results, max((found.step for found in results.values()), default=0))


def _row(id: str, results: Results, more: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": id,
        **more,
        "seen": results.seen,
        "pass_rate": results.pass_rate,
        "mean_pass_rate": results.mean_pass_rate,
        "step": results.step,
        "samples": results.samples,
        "correct": results.correct,
        "recent": list(results.recent),
    }
