"""Rules of drawing, what they know of a request, and the plain one: shuffled epochs."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

from bandpo.data.sampling.history import History, Results
from bandpo.data.sampling.streams import Streams
from bandpo.errors import UserError


@dataclass(frozen=True)
class Request:
    """A request for prompts, as rules see it.

    step      the step that they are for; the history has the steps before it
    epoch     how many steps one epoch over all problems takes
    sources   the source of each problem
    name      of the streams that a rule may use: rules inside others have their own
    drawn     the problems that were drawn for this step before
    returned  gathers the problems that rules called back early, since too few were left
    """

    step: int
    epoch: float
    history: History
    streams: Streams
    sources: Mapping[str, str]
    name: str = ""
    drawn: Collection[str] = ()
    returned: set[str] = field(default_factory=set)

    def away(self, results: Results) -> float:
        """Epochs since the last group of a problem with these results."""
        return (self.step - results.step) / self.epoch

    def within(self, part: str) -> Request:
        """The request to the rule of a part, which has streams of its own."""
        return replace(self, name=f"{self.name}/{part}")


@runtime_checkable
class Rule(Protocol):
    """Draws problems from a pool of ids; a frozen value, whose memory is in the request."""

    def __call__(self, n: int, pool: Sequence[str], request: Request) -> list[str]:
        """`n` different ids of the pool, or all of them if it is smaller."""
        ...

    @property
    def states(self) -> tuple[str, ...]:
        """The states that a problem may have."""
        ...

    def state(self, results: Results, away: float) -> str:
        """The state of a problem with these results, so many epochs after its last group."""
        ...


@dataclass(frozen=True)
class Epochs:
    """Shuffled epochs: every problem of the pool once before any is drawn again."""

    def __call__(self, n: int, pool: Sequence[str], request: Request) -> list[str]:
        return request.streams.epoch(request.name, pool, n)

    @property
    def states(self) -> tuple[str, ...]:
        """All problems are `active`."""
        return ("active",)

    def state(self, results: Results, away: float) -> str:
        """`active`."""
        return "active"


def by_shares(
    n: int,
    parts: Mapping[str, Sequence[str]],
    weights: Mapping[str, float],
    inner: Rule,
    request: Request,
) -> list[str]:
    """`n` ids from the parts of a pool in shares by weight, those of a part by the rule `inner`."""
    sizes = {part: len(members) for part, members in parts.items()}
    picks = request.streams.shares(request.name, weights, sizes, n)
    drawn = {
        part: iter(inner(picks.count(part), members, request.within(part)))
        for part, members in parts.items()
        if part in picks
    }
    return [next(drawn[part]) for part in picks]


@dataclass(frozen=True)
class BySource:
    """Shares by the weights of the sources (`data.train.sources`); each source has its own epochs.

    `weights`: source → weight. Problems of a source are drawn by the rule `inner`.
    """

    weights: Mapping[str, float]
    inner: Rule = field(default_factory=Epochs)

    def require(self, n: int, sizes: Mapping[str, int]) -> None:
        """Raises UserError where a source of this size has too few problems for its share of n."""
        total = sum(self.weights.values())
        for source, weight in self.weights.items():
            wanted, has = math.ceil(n * weight / total - 1e-9), sizes.get(source, 0)
            if has < wanted:
                raise UserError(
                    f"data.train: {source} has {has} problems that fit, and its weight asks for "
                    f"{wanted} different ones of the {n} prompts per step: lower its weight or "
                    "rollout.prompts_per_step, or give it more problems"
                )

    def __call__(self, n: int, pool: Sequence[str], request: Request) -> list[str]:
        parts: dict[str, list[str]] = {source: [] for source in self.weights}
        for id in pool:
            parts[request.sources[id]].append(id)
        return by_shares(n, parts, self.weights, self.inner, request)

    @property
    def states(self) -> tuple[str, ...]:
        """Those of the rule inside."""
        return self.inner.states

    def state(self, results: Results, away: float) -> str:
        """That of the rule inside."""
        return self.inner.state(results, away)
