"""The score of a completion, and the protocol of a reward."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import BrokenExecutor, CancelledError, Future
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

from bandpo.errors import UserError

if TYPE_CHECKING:  # bandpo.types imports torch, which verifier workers must not load
    from bandpo.types import Group

Status = Literal["correct", "wrong", "no_answer", "truncated", "timeout", "crashed", "bad_gold"]
STATUSES: tuple[Status, ...] = get_args(Status)
# The verdicts of reports: the statuses, with unreadable answers apart from other wrong ones.
VERDICTS: tuple[str, ...] = ("correct", "wrong", "unparsed", *STATUSES[2:])

# The reasons of a wrong answer that was read; "" where it has another value.
DETAILS: tuple[str, ...] = (
    "unparsed",
    "no_numeral",
    "unevaluated",
    "restated",
    "other_unit",
    "other_brackets",
    "too_large",
)
LowestForm = Literal["restated", "strict", "off"]


@dataclass(frozen=True)
class Score:
    """The reward of one completion, and the reasons for it.

    `extracted` is the answer as the model wrote it, None where there was none to read; `seconds`
    the verification took in a worker, 0 where none was needed; `detail` refines "wrong":
    `unparsed` (math-verify could not read the answer), `other_unit`, `other_brackets` (a set for a
    point), `restated` (equal, but said by the problem), `unevaluated` (equal, but arithmetic or
    like terms are left), `no_numeral` (strict alone: the reference is a number in lowest form, the
    answer is none), `too_large` (refused before parsing), and "" for another value. A timeout is
    `hostile` (a tower of powers, a large factorial) or `hard`.
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

    @property
    def reason(self) -> str:
        """The status with its detail, as reports show it: `wrong (restated)`."""
        return f"{self.status} ({self.detail})" if self.detail else self.status


class WorkerDied(RuntimeError):
    """A reward's processes can no longer score, through no fault of what they scored."""


def is_death(error: BaseException) -> bool:
    """Whether a reward built anew may succeed where this one failed; all else is its own error."""
    return isinstance(error, WorkerDied | BrokenExecutor | CancelledError)


class Reward(Protocol):
    """Scores groups while the engine still generates others."""

    def submit(self, group: Group) -> Future[list[Score]]:
        """Starts scoring; the future holds one score per completion, in the group's order."""
        ...

    def close(self) -> None:
        """Ends worker processes; submitted groups are abandoned."""
        ...


def name_of(reward: object) -> str:
    """The name of a reward, or of the function that it is made of: `my_reward.score`."""
    while (inner := getattr(reward, "func", None)) is not None:  # hydra's _partial_
        reward = inner
    named = reward if hasattr(reward, "__qualname__") else type(reward)
    return f"{named.__module__}.{named.__qualname__}"


def checked(scores: object, reward: object, group: Group) -> tuple[Score, ...]:
    """A reward's scores of a group; raises UserError where they are not one finite score each."""
    what = f"the reward {name_of(reward)} returned"
    if not isinstance(scores, Sequence) or not all(isinstance(score, Score) for score in scores):
        raise UserError(
            f"{what} {str(scores)[:80]!r} for the samples of {group.problem.id}: a list with a "
            "bandpo.reward.Score for each is needed"
        )
    if len(scores) != len(group.completions):
        raise UserError(
            f"{what} {len(scores)} scores for the {len(group.completions)} samples of "
            f"{group.problem.id}"
        )
    values = [finite(score.value) for score in scores]
    for index, (score, value) in enumerate(zip(scores, values, strict=True)):
        if value is None:
            raise UserError(
                f"{what} the value {score.value!r} for sample {group.problem.id}/{index}: it must "
                "be a finite number"
            )
    return tuple(replace(score, value=value) for score, value in zip(scores, values, strict=True))


def finite(value: Any) -> float | None:
    """A finite number of any library as Python's own; None for everything else."""
    try:
        number = math.nan if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return None
    return number if math.isfinite(number) else None


class Closing:
    """A base class for `with reward:`, which closes it at the end."""

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends nothing; for subclasses that start something."""


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
