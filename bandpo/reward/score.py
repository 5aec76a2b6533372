"""What a verifier says about a completion, and what the training loop asks of a reward."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, get_args

if TYPE_CHECKING:  # bandpo.types imports torch, which verifier workers must not load
    from bandpo.types import Group

Status = Literal["correct", "wrong", "no_answer", "truncated", "timeout", "crashed", "bad_gold"]
STATUSES: tuple[Status, ...] = get_args(Status)
# What reports tell apart: the statuses, and of the wrong answers those that could not be read.
VERDICTS: tuple[str, ...] = ("correct", "wrong", "unparsed", *STATUSES[2:])


@dataclass(frozen=True)
class Score:
    """The reward of one completion and how it came about.

    `extracted` is the answer as the model wrote it, None where there was none to read; `seconds`
    the verification took in a worker, 0 where none was needed; `detail` refines "wrong":
    `unparsed` (math-verify could not read the answer), `no_numeral` (the reference is a number in
    lowest form, the answer is none), `unevaluated` (equal, but not in lowest form, or copied from
    the problem), `too_large` (refused before parsing).
    """

    value: float
    status: Status
    extracted: str | None
    seconds: float
    detail: str = ""

    @property
    def correct(self) -> bool:
        """Whether the answer equals the reference answer."""
        return self.status == "correct"


class Reward(Protocol):
    """Scores groups while the engine still generates others."""

    def submit(self, group: Group) -> Future[list[Score]]:
        """Starts scoring; the future holds one score a completion, in the group's order."""
        ...

    def close(self) -> None:
        """Ends worker processes; submitted groups are abandoned."""
        ...


class Closing:
    """`with reward:` closes it at the end."""

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Nothing to end, unless a subclass starts something."""


def has_bad_gold(scores: Iterable[Score]) -> bool:
    """Whether the group's reference answer is unreadable, so that it must not be trained on."""
    return any(score.status == "bad_gold" for score in scores)


def verifier_counts(scores: Iterable[Score]) -> dict[str, int]:
    """`verifier/<status>` for every status but correct and wrong, and `verifier/unparsed`.

    `unparsed` counts answers that were found but that math-verify could not read; their status
    is wrong.
    """
    scores = list(scores)
    statuses = Counter(score.status for score in scores)
    counts = {f"verifier/{s}": statuses[s] for s in STATUSES if s not in ("correct", "wrong")}
    return counts | {"verifier/unparsed": sum(score.detail == "unparsed" for score in scores)}
