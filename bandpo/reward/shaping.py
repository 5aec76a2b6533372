"""Rewards made of rewards: terms added to a score, weighted sums, and users' own functions.

Everything here is a value to compose:
`Shaped(MathReward(), [Overlong(max_tokens=4608, buffer=512), FormatBonus(0.1)])`.
Their scores name the parts that they are the sum of.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from bandpo.errors import UserError, place_of
from bandpo.reward.futures import gather, otherwise, then
from bandpo.reward.score import (
    Closing,
    Part,
    Reward,
    Score,
    Status,
    checked,
    described,
    finite,
    is_death,
    name_of,
    part_name,
    shown,
)
from bandpo.reward.threads import Late, Threads

if TYPE_CHECKING:
    from bandpo.types import Completion, Group, Problem

Value = float | Mapping[str, float]
"""A reward as a function returns it: a number, or several under their names."""


class Term(Protocol):
    """A number added to the value of a scored completion.

    It may have a `name`, under which it is a part of the reward, and a `weight` that it is already
    multiplied by.
    """

    def __call__(self, completion: Completion, score: Score) -> float: ...


@dataclass(frozen=True)
class Overlong:
    """The soft overlong punishment: linear over the last `buffer` tokens before the limit.

    −penalty · clip((|y| − (max_tokens − buffer)) / buffer, 0, 1), |y| tokens long
    (DAPO, section "Overlong Reward Shaping").
    """

    max_tokens: int
    buffer: int
    penalty: float = 1.0
    name: ClassVar[str] = "overlong"

    def __post_init__(self) -> None:
        if not 0 < self.buffer <= self.max_tokens:
            raise UserError(
                f"reward.overlong.buffer is {self.buffer}: it must lie between 1 and "
                f"rollout.max_tokens ({self.max_tokens})"
            )

    @property
    def weight(self) -> float:
        """The penalty at the limit."""
        return self.penalty

    def __call__(self, completion: Completion, score: Score) -> float:
        excess = completion.length - (self.max_tokens - self.buffer)
        return -self.penalty * min(max(excess / self.buffer, 0.0), 1.0)


@dataclass(frozen=True)
class FormatBonus:
    """`bonus` for a completion whose answer could be read, right or wrong."""

    bonus: float
    name: ClassVar[str] = "format"

    @property
    def weight(self) -> float:
        """The bonus."""
        return self.bonus

    def __call__(self, completion: Completion, score: Score) -> float:
        return self.bonus if score.extracted is not None else 0.0


class Shaped(Closing):
    """A reward plus terms, each a part of it; the statuses are those of the reward."""

    def __init__(self, reward: Reward, terms: Sequence[Term]) -> None:
        self.reward, self.terms = reward, tuple(terms)

    def submit(self, group: Group) -> Future[list[Score]]:
        """Starts the reward; the terms are added to its scores."""

        def add(scores: list[Score]) -> list[Score]:
            rows = zip(checked(scores, self.reward, group), group.completions, strict=True)
            return [self._add(*row, f"{group.problem.id}/{i}") for i, row in enumerate(rows)]

        return then(self.reward.submit(group), add)

    def _add(self, score: Score, completion: Completion, sample: str) -> Score:
        amounts = [_amount(term, completion, score, sample) for term in self.terms]
        parts = [*_parts_of(score, part_name(self.reward)), *map(_part, self.terms, amounts)]
        return replace(score, value=score.value + sum(amounts), parts=_distinct(parts))

    def close(self) -> None:
        """Ends the reward."""
        self.reward.close()


def _amount(term: Term, completion: Completion, score: Score, sample: str) -> float:
    """The number that a term adds; raises UserError where it raises or returns another thing."""
    try:
        amount = term(completion, score)
    except Exception as error:
        raise UserError.caused(
            f"the reward's term {name_of(term)} raised {described(error)} for sample {sample}"
            f"{place_of(error)}",
            error,
        ) from error
    number = finite(amount)
    if number is None:
        raise UserError(
            f"the reward's term {name_of(term)} returned {shown(amount)} for sample {sample}: it "
            "must return a finite number"
        )
    return number


def _part(term: Term, amount: float) -> Part:
    weight = finite(getattr(term, "weight", None)) or 1.0
    return Part(part_name(term), amount / weight, weight)


def _parts_of(score: Score, name: str, weight: float = 1.0) -> list[Part]:
    """The score as parts of a larger one: its own, or itself under the name."""
    own = score.parts or (Part(name, score.value),)
    return [part._replace(weight=weight * part.weight) for part in own]


def _distinct(parts: Sequence[Part]) -> tuple[Part, ...]:
    """The parts, a repeated name with a number behind it; none where there is but one."""
    taken: dict[str, Part] = {}
    for part in parts if len(parts) > 1 else ():
        name, number = part.name, 2
        while name in taken:
            name, number = f"{part.name}_{number}", number + 1
        taken[name] = part._replace(name=name)
    return tuple(taken.values())


def _finite_weights(weights: Mapping[Any, float]) -> dict[Any, float]:
    """Raises UserError where one is no finite number."""
    numbers = {key: finite(weight) for key, weight in weights.items()}
    if None in numbers.values():
        raise UserError(f"reward.weights is {shown(weights)}: each must be a finite number")
    return {key: number for key, number in numbers.items() if number is not None}


class WeightedSum(Closing):
    """Σ weight · value over several rewards, its parts; status and answer are the first's.

    `names` are those of the parts in metrics; without them the rewards' own.
    """

    def __init__(
        self, rewards: Sequence[Reward], weights: Sequence[float], names: Sequence[str] = ()
    ) -> None:
        if not rewards or len(rewards) != len(weights):
            raise UserError(
                f"reward: {len(rewards)} rewards and {len(weights)} weights; give each one weight"
            )
        if names and (len(names) != len(rewards) or len(set(names)) != len(names)):
            raise UserError(
                f"reward.names is {list(names)}: give each of the {len(rewards)} rewards a name of "
                "its own, or none"
            )
        self.rewards = tuple(rewards)
        self.weights = tuple(_finite_weights(dict(enumerate(weights))).values())
        self.names = tuple(names) or tuple(map(part_name, rewards))

    def submit(self, group: Group) -> Future[list[Score]]:
        """Starts all rewards at once."""
        scores = gather([reward.submit(group) for reward in self.rewards])
        return then(scores, lambda columns: self._add(group, columns))

    def _add(self, group: Group, columns: list[list[Score]]) -> list[Score]:
        rows = [checked(c, reward, group) for reward, c in zip(self.rewards, columns, strict=True)]
        return [
            replace(
                scores[0],
                value=sum(w * s.value for w, s in zip(self.weights, scores, strict=True)),
                seconds=sum(s.seconds for s in scores),
                parts=_distinct(self._parts(scores)),
            )
            for scores in zip(*rows, strict=True)
        ]

    def _parts(self, scores: Iterable[Score]) -> list[Part]:
        members = zip(scores, self.names, self.weights, strict=True)
        return [part for member in members for part in _parts_of(*member)]

    def close(self) -> None:
        """Ends all rewards."""
        for reward in self.rewards:
            reward.close()


class _Exited(Exception):
    """A coroutine would have ended the event loop, and with it all others."""


class FunctionReward(Closing):
    """A user's `function(problem, completion)`, plain or `async`, which returns a number.

    A mapping of names to numbers is a reward of several parts, Σ weight · number; a part without a
    weight has 1. Plain functions run in `threads` threads, coroutines together in one event loop;
    both overlap with generation. In evaluation a value above `threshold` counts as correct. The
    future of a group raises UserError, which names function and sample, where the function raises,
    returns anything else, or has not returned after `timeout` seconds (None: it may take forever).
    """

    def __init__(
        self,
        function: Callable[[Problem, Completion], Value | Awaitable[Value]],
        *,
        threshold: float = 0.0,
        threads: int = 4,
        timeout: float | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        if timeout is not None and not timeout > 0:
            raise UserError(f"reward.timeout is {timeout}: it must be above 0 seconds, or null")
        self.function, self.threshold, self.timeout = function, threshold, timeout
        self.weights = _finite_weights(weights or {})
        self.name = part_name(function)
        self._threads = Threads(threads, "bandpo-reward")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()

    def submit(self, group: Group) -> Future[list[Score]]:
        """Starts one call per completion."""
        calls = [
            self._scored(self._call(group.problem, completion), f"{group.problem.id}/{index}")
            for index, completion in enumerate(group.completions)
        ]
        return gather(calls)

    def _call(self, problem: Problem, completion: Completion) -> Future[Any]:
        if _is_async(self.function):
            return self._awaited(lambda: self.function(problem, completion))

        def call() -> Any:
            value = self.function(problem, completion)
            # A decorator may hide that its function is `async`.
            return self._awaited(lambda: value).result() if inspect.isawaitable(value) else value

        return self._threads.submit(call, self.timeout)

    def _awaited(self, begin: Callable[[], Any]) -> Future[Any]:
        async def run() -> Any:
            try:
                async with asyncio.timeout(self.timeout) as limit:
                    return await begin()
            except TimeoutError:
                if limit.expired():
                    raise Late from None
                raise
            except (SystemExit, KeyboardInterrupt) as error:
                raise _Exited from error

        return asyncio.run_coroutine_threadsafe(run(), self._event_loop())

    def _event_loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, daemon=True).start()
            return self._loop

    def _scored(self, call: Future[Any], sample: str) -> Future[Score]:
        """The score of a sample, once the function has returned its value."""

        def failed(error: BaseException) -> BaseException:
            if isinstance(error, UserError) or is_death(error):
                return error
            if isinstance(error, _Exited) and error.__cause__:
                error = error.__cause__
            what = f"the reward {name_of(self.function)}"
            if isinstance(error, Late):
                return UserError(
                    f"{what} has not scored sample {sample} within {self.timeout:g} s "
                    "(reward.timeout)"
                )
            return UserError.caused(
                f"{what} raised {described(error)} for sample {sample}{place_of(error)}", error
            )

        return then(otherwise(call, failed), lambda value: self._score(value, sample))

    def _score(self, value: Any, sample: str) -> Score:
        """Raises UserError for anything but a finite number, or a mapping of names to such."""
        named = value if isinstance(value, Mapping) else {self.name: value}
        if unknown := self.weights.keys() - named.keys():
            raise UserError(
                f"reward.weights names {', '.join(sorted(unknown))}: the reward "
                f"{name_of(self.function)} returned {shown(value)} for sample {sample}"
            )
        parts = [
            Part(name, number, self.weights.get(name, 1.0))
            for name, item in named.items()
            if isinstance(name, str) and name and (number := finite(item)) is not None
        ]
        total = finite(sum(part.weight * part.value for part in parts))
        if not parts or len(parts) < len(named) or total is None:
            raise UserError(
                f"the reward {name_of(self.function)} returned {shown(value)} for sample {sample}: "
                "it must return a finite number, or a mapping of names to finite numbers"
            )
        status: Status = "correct" if total > self.threshold else "wrong"
        return Score(total, status, None, 0.0, parts=_distinct(parts))

    def close(self) -> None:
        """Ends the threads and the event loop; calls not begun are abandoned."""
        self._threads.close()
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)


def _is_async(function: Callable[..., object]) -> bool:
    inner = getattr(function, "func", function)  # hydra's _partial_
    return inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(
        getattr(inner, "__call__", None)  # noqa: B004 - an object with async __call__
    )
