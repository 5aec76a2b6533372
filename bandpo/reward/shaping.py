"""Rewards made of rewards: terms added to a score, weighted sums, and users' own functions.

Everything here is a value to compose:
`Shaped(MathReward(), [Overlong(max_tokens=4608, buffer=512), FormatBonus(0.1)])`.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from bandpo.errors import UserError, place_of
from bandpo.reward.futures import gather, otherwise, then
from bandpo.reward.score import Closing, Reward, Score, checked, finite, is_death, name_of

if TYPE_CHECKING:
    from bandpo.types import Completion, Group, Problem


class Term(Protocol):
    """A number added to the value of a scored completion."""

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

    def __post_init__(self) -> None:
        if not 0 < self.buffer <= self.max_tokens:
            raise UserError(
                f"reward.overlong.buffer is {self.buffer}: it must lie between 1 and "
                f"rollout.max_tokens ({self.max_tokens})"
            )

    def __call__(self, completion: Completion, score: Score) -> float:
        excess = completion.length - (self.max_tokens - self.buffer)
        return -self.penalty * min(max(excess / self.buffer, 0.0), 1.0)


@dataclass(frozen=True)
class FormatBonus:
    """`bonus` for a completion whose answer could be read, right or wrong."""

    bonus: float

    def __call__(self, completion: Completion, score: Score) -> float:
        return self.bonus if score.extracted is not None else 0.0


class Shaped(Closing):
    """A reward plus terms; the statuses are those of the reward."""

    def __init__(self, reward: Reward, terms: Sequence[Term]) -> None:
        self.reward, self.terms = reward, tuple(terms)

    def submit(self, group: Group) -> Future[list[Score]]:
        """Starts the reward; the terms are added to its scores."""

        def add(scores: list[Score]) -> list[Score]:
            return [
                replace(score, value=score.value + sum(t(completion, score) for t in self.terms))
                for score, completion in zip(
                    checked(scores, self.reward, group), group.completions, strict=True
                )
            ]

        return then(self.reward.submit(group), add)

    def close(self) -> None:
        """Ends the reward."""
        self.reward.close()


class WeightedSum(Closing):
    """Σ weight · value over several rewards; status and answer are those of the first."""

    def __init__(self, rewards: Sequence[Reward], weights: Sequence[float]) -> None:
        if not rewards or len(rewards) != len(weights):
            raise UserError(
                f"reward: {len(rewards)} rewards and {len(weights)} weights; give each one weight"
            )
        self.rewards, self.weights = tuple(rewards), tuple(weights)

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
            )
            for scores in zip(*rows, strict=True)
        ]

    def close(self) -> None:
        """Ends all rewards."""
        for reward in self.rewards:
            reward.close()


class FunctionReward(Closing):
    """A user's `function(problem, completion) -> float`, plain or `async`.

    Plain functions run in `threads` threads, coroutines together in one event loop; both overlap
    with generation. In evaluation a value above `threshold` counts as correct. The future
    of a group raises UserError, which names function and sample, where the function raises or
    returns anything but a finite number.
    """

    def __init__(
        self,
        function: Callable[[Problem, Completion], float | Awaitable[float]],
        *,
        threshold: float = 0.0,
        threads: int = 4,
    ) -> None:
        self.function, self.threshold = function, threshold
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="bandpo-reward")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()

    def submit(self, group: Group) -> Future[list[Score]]:
        """Starts one call per completion."""
        calls = [
            self._scored(self._call(group.problem, completion), f"{group.problem.id}/{index}")
            for index, completion in enumerate(group.completions)
        ]
        return gather(calls)

    def _call(self, problem: Problem, completion: Completion) -> Future[float]:
        if not _is_async(self.function):
            return self._executor.submit(self.function, problem, completion)  # type: ignore[arg-type]

        async def run() -> float:
            return await self.function(problem, completion)  # type: ignore[misc]

        return asyncio.run_coroutine_threadsafe(run(), self._event_loop())

    def _event_loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, daemon=True).start()
            return self._loop

    def _scored(self, call: Future[float], sample: str) -> Future[Score]:
        """The score of a sample, once the function has returned its value."""

        def score(value: float) -> Score:
            number = finite(value)
            if number is None:
                raise UserError(
                    f"the reward {name_of(self.function)} returned {value!r} for sample {sample}: "
                    "it must return a finite number"
                )
            return Score(number, "correct" if number > self.threshold else "wrong", None, 0.0)

        def failed(error: BaseException) -> BaseException:
            if isinstance(error, UserError) or is_death(error):
                return error
            return UserError.caused(
                f"the reward {name_of(self.function)} raised {type(error).__name__}: {error} for "
                f"sample {sample}{place_of(error)}",
                error,
            )

        return then(otherwise(call, failed), score)

    def close(self) -> None:
        """Ends the threads and the event loop; calls not begun are abandoned."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)


def _is_async(function: Callable[..., object]) -> bool:
    inner = getattr(function, "func", function)  # hydra's _partial_
    return inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(
        getattr(inner, "__call__", None)  # noqa: B004 - an object with async __call__
    )
