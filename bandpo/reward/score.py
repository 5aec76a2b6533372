"""The score of a completion, and the protocol of a reward."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import BrokenExecutor, CancelledError, Future
from dataclasses import dataclass, replace
from numbers import Complex, Real
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, get_args

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


class Part(NamedTuple):
    """A named part of a reward, which contributes weight · value to it."""

    name: str
    value: float
    weight: float = 1.0


@dataclass(frozen=True)
class Score:
    """The reward of one completion, and the reasons for it.

    `extracted` is the answer as the model wrote it, None where there was none to read; `seconds`
    the verification took in a worker, 0 where none was needed; `detail` refines "wrong":
    `unparsed` (math-verify could not read the answer), `other_unit`, `other_brackets` (a set for a
    point), `restated` (equal, but said by the problem), `unevaluated` (equal, but arithmetic or
    like terms are left), `no_numeral` (strict alone: the reference is a number in lowest form, the
    answer is none), `too_large` (refused before parsing), and "" for another value. A timeout is
    `hostile` (a tower of powers, a large factorial) or `hard`. `parts` are those of a reward that
    has several: `value` is their weighted sum.
    """

    value: float
    status: Status
    extracted: str | None
    seconds: float
    detail: str = ""
    parts: tuple[Part, ...] = ()

    @property
    def correct(self) -> bool:
        """Whether the answer equals the reference answer."""
        return self.status == "correct"

    def plus(self, name: str, amount: float) -> Score:
        """The score with an amount added to its value as one more part."""
        parts = (*(self.parts or (Part("reward", self.value),)), Part(name, amount))
        return replace(self, value=self.value + amount, parts=parts)

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


def part_name(part: object) -> str:
    """Its `name`, or the last word of `name_of`: `score` for the function `my_reward.score`."""
    name = getattr(part, "name", None)
    return name if isinstance(name, str) and name else name_of(part).rpartition(".")[2].strip("<>")


def shown(value: object, most: int = 80) -> str:
    """A value for a message, cut to so many characters; its type where it cannot be shown."""
    try:
        text = repr(value)
    except Exception:  # of a user's class
        return f"<{type(value).__qualname__}>"
    return text if len(text) <= most else f"{text[:most]}…"


def described(error: BaseException, most: int = 500) -> str:
    """An error's type and message, cut to so many characters; the type alone if that fails."""
    try:
        text = f"{type(error).__name__}: {error}"
    except Exception:  # of a user's class
        return type(error).__name__
    return text if len(text) <= most else f"{text[:most]}…"


def checked(scores: object, reward: object, group: Group) -> tuple[Score, ...]:
    """A reward's scores of a group; raises UserError where they are not one finite score each."""
    what = f"the reward {name_of(reward)} returned"
    if not isinstance(scores, Sequence) or not all(isinstance(score, Score) for score in scores):
        raise UserError(
            f"{what} {shown(scores)} for the samples of {group.problem.id}: a list with a "
            "bandpo.reward.Score for each is needed"
        )
    if len(scores) != len(group.completions):
        raise UserError(
            f"{what} {len(scores)} scores for the {len(group.completions)} samples of "
            f"{group.problem.id}"
        )
    found = tuple(
        _checked(score, what, f"{group.problem.id}/{index}") for index, score in enumerate(scores)
    )
    names = [tuple(part.name for part in score.parts) for score in found]
    for index, own in enumerate(names):
        if own != names[0]:
            raise UserError(
                f"{what} the parts {', '.join(own) or 'none'} for sample {group.problem.id}/"
                f"{index} and {', '.join(names[0]) or 'none'} for sample {group.problem.id}/0: "
                "every sample must have the same"
            )
    return found


def _checked(score: Score, what: str, sample: str) -> Score:
    """The score with Python's own numbers; raises UserError for a field of another kind."""
    value = finite(score.value)
    if value is None:
        raise UserError(
            f"{what} the value {shown(score.value)} for sample {sample}: it must be a finite number"
        )
    if score.status not in STATUSES:
        raise UserError(
            f"{what} the status {shown(score.status)} for sample {sample}: it must be one of "
            f"{', '.join(STATUSES)}"
        )
    if not isinstance(score.extracted, str | None) or not isinstance(score.detail, str):
        raise UserError(
            f"{what} the answer {shown(score.extracted)} with the detail {shown(score.detail)} for "
            f"sample {sample}: both must be text (an answer that could not be read is None)"
        )
    # Not `replace`: what a user's subclass holds need not travel between ranks.
    seconds, parts = finite(score.seconds) or 0.0, _checked_parts(score.parts, what, sample)
    return Score(value, score.status, score.extracted, seconds, score.detail, parts)


def _checked_parts(parts: Iterable[Part], what: str, sample: str) -> tuple[Part, ...]:
    found = []
    for name, value, weight in parts:
        numbers = finite(value), finite(weight)
        if not isinstance(name, str) or not name or None in numbers:
            raise UserError(
                f"{what} the part {shown(name)} with the value {shown(value)} and the weight "
                f"{shown(weight)} for sample {sample}: it must be a name and two finite numbers"
            )
        found.append(Part(name, *numbers))  # type: ignore[arg-type]
    return tuple(found)


def finite(value: Any) -> float | None:
    """A finite number of any library as Python's own; None for everything else."""
    if isinstance(value, str | bytes | bytearray):
        return None
    if isinstance(value, Complex) and not isinstance(value, Real):  # NumPy drops imaginary parts
        return None
    try:
        number = float(value)
    except Exception:  # whatever a user's class raises, it is no number
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


def part_metrics(scores: Sequence[Score]) -> dict[str, float]:
    """`reward/<name>/mean`, `/std` and `/share` of each part; empty for rewards of one part.

    Mean and standard deviation are those of the part's value, without its weight; the share is
    Σ |weight · value| over the samples, of the sum of this over all parts (0 where that is 0).
    """
    own = [{part.name: part for part in score.parts} for score in scores]
    names = list(dict.fromkeys(name for parts in own for name in parts))
    columns = {name: [parts.get(name, Part(name, 0.0)) for parts in own] for name in names}
    sizes = {n: math.fsum(abs(p.weight * p.value) for p in parts) for n, parts in columns.items()}
    total = math.fsum(sizes.values())
    metrics: dict[str, float] = {}
    for name, parts in columns.items():
        values = [part.value for part in parts]
        metrics[f"reward/{name}/mean"] = fmean(values)
        metrics[f"reward/{name}/std"] = pstdev(values)
        metrics[f"reward/{name}/share"] = sizes[name] / total if total else 0.0
    return metrics
