"""Rules that look at pass rates: problems at rest, pools by difficulty, and weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from bandpo.data.sampling.history import RECENT, Results
from bandpo.data.sampling.rules import Epochs, Request, Rule, by_shares
from bandpo.errors import UserError

RESTING = ("solved", "failed")


@dataclass(frozen=True)
class Rest:
    """Leaves out problems that were solved or failed several times in a row, for some epochs.

    A problem rests when its last `in_a_row` groups all had a pass rate of at least `high` (solved)
    or of at most `low` (failed), and returns `epochs` epochs after the last one: where its next
    group is like those before, it rests again. An epoch is the number of problems divided by
    `rollout.prompts_per_step`, in steps. low=0.2, high=0.8 and in_a_row=1 are a curriculum of the
    problems of medium difficulty. If fewer others are left than a request asks for, those that have
    been away longest return early. Others are drawn by the rule `inner`.
    """

    inner: Rule = field(default_factory=Epochs)
    in_a_row: int = 2
    epochs: float = 3.0
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        _require(1 <= self.in_a_row <= RECENT, f"in_a_row={self.in_a_row}", f"from 1 to {RECENT}")
        _require(self.epochs > 0, f"epochs={self.epochs}", "above 0")
        _require_between(self.low, self.high, "low", "high")

    def __call__(self, n: int, pool: Sequence[str], request: Request) -> list[str]:
        history = request.history
        found = ((id, history.of(id)) for id in pool)
        away = {id for id, results in found if self._rest(results, request.away(results))}
        lacking = min(n, len(pool)) - (len(pool) - len(away))
        if lacking > 0:
            lots = request.streams.lots(f"{request.name}/rest", away)
            longest = sorted(away, key=lambda id: (history.of(id).step, lots[id]))[:lacking]
            away -= set(longest)
            request.returned.update(longest)
        return self.inner(n, [id for id in pool if id not in away], request)

    @property
    def states(self) -> tuple[str, ...]:
        """`solved` and `failed` problems rest; others have a state of the rule inside."""
        return (*RESTING, *self.inner.states)

    def state(self, results: Results, away: float) -> str:
        """`solved`, `failed`, or that of the rule inside."""
        return self._rest(results, away) or self.inner.state(results, away)

    def _rest(self, results: Results, away: float) -> str | None:
        """The reason for which a problem rests; None for one that does not."""
        if not results.seen or away > self.epochs:
            return None
        if results.in_a_row(lambda rate: rate >= self.high) >= self.in_a_row:
            return "solved"
        if results.in_a_row(lambda rate: rate <= self.low) >= self.in_a_row:
            return "failed"
        return None


@dataclass(frozen=True)
class Pools:
    """Draws given shares from pools of easy, normal and hard problems, as prime-rl does.

    By its last group a problem is easy from the pass rate `easy` on, hard up to `hard`, and else
    normal, as it is before its first group. `easy_share` and `hard_share` of the draws come from
    those pools, and the others from the normal one; what a pool lacks comes from the others. The
    problems of a pool are drawn by the rule `inner`.
    """

    inner: Rule = field(default_factory=Epochs)
    easy: float = 0.8
    hard: float = 0.2
    easy_share: float = 0.1
    hard_share: float = 0.1

    def __post_init__(self) -> None:
        _require_between(self.hard, self.easy, "hard", "easy")
        shares = (self.easy_share, self.hard_share)
        _require(
            min(shares) >= 0 and sum(shares) < 1,
            f"easy_share={self.easy_share}, hard_share={self.hard_share}",
            "at least 0 each and less than 1 together",
        )

    def __call__(self, n: int, pool: Sequence[str], request: Request) -> list[str]:
        parts: dict[str, list[str]] = {"easy": [], "normal": [], "hard": []}
        for id in pool:
            results = request.history.of(id)
            parts[self.state(results, request.away(results))].append(id)
        normal = 1 - self.easy_share - self.hard_share
        weights = {"easy": self.easy_share, "normal": round(normal, 12), "hard": self.hard_share}
        return by_shares(n, parts, weights, self.inner, request)

    @property
    def states(self) -> tuple[str, ...]:
        """The pools."""
        return ("easy", "normal", "hard")

    def state(self, results: Results, away: float) -> str:
        """The pool of a problem."""
        rate = results.pass_rate
        if rate is None:
            return "normal"
        return "easy" if rate >= self.easy else "hard" if rate <= self.hard else "normal"


@dataclass(frozen=True)
class ByPassRate:
    """Weights p·(1 − p) + `least` by the last pass rate p, the variance of a group's verdicts.

    A problem that was not drawn yet has the weight of p = `unseen`. Draws without replacement: of
    lots u, those with the largest u^(1/weight) win (P. Efraimidis and P. Spirakis, Weighted random
    sampling with a reservoir, Information Processing Letters 97, 2006).
    """

    unseen: float = 0.5
    least: float = 0.02

    def __post_init__(self) -> None:
        _require(0 <= self.unseen <= 1, f"unseen={self.unseen}", "from 0 to 1")
        _require(self.least > 0, f"least={self.least}", "above 0: others would never return")

    def __call__(self, n: int, pool: Sequence[str], request: Request) -> list[str]:
        lots = request.streams.lots(request.name, pool)

        def rank(id: str) -> tuple[bool, float]:
            again = id in request.drawn  # a refill prefers others
            return again, -math.log(lots[id]) / self.weight(request.history.of(id))

        return sorted(pool, key=rank)[:n]

    def weight(self, results: Results) -> float:
        """The weight of a problem with these results."""
        p = self.unseen if results.pass_rate is None else results.pass_rate
        return p * (1 - p) + self.least

    @property
    def states(self) -> tuple[str, ...]:
        """All problems are `active`."""
        return ("active",)

    def state(self, results: Results, away: float) -> str:
        """`active`."""
        return "active"


def _require_between(low: float, high: float, low_name: str, high_name: str) -> None:
    """Pass rates in order."""
    _require(
        0 <= low < high <= 1,
        f"{low_name}={low}, {high_name}={high}",
        f"pass rates from 0 to 1, and {low_name} below {high_name}",
    )


def _require(holds: bool, setting: str, allowed: str) -> None:
    if not holds:
        raise UserError(f"data.sampler: {setting}: must be {allowed}")
