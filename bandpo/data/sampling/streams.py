"""The memory of rules: epochs, shares and draws of lots, by name."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any


def shuffled(ids: Iterable[str], seed: str) -> list[str]:
    """The ids in the order of sha256(seed/id).

    It depends on nothing else: not on their order, the library or the machine.
    """
    return sorted(ids, key=lambda id: hashlib.sha256(f"{seed}/{id}".encode()).digest())


class Streams:
    """Streams of draws from one set of problems; each has a name, and its own epochs.

    A problem counts as drawn in a stream's epoch if any stream drew it since the epoch began, so
    that one that moves to another pool is not repeated at once.
    """

    def __init__(self, ids: Collection[str], seed: int) -> None:
        self._ids, self._seed = tuple(ids), seed
        self._clock = 0  # epochs begun, in all streams
        self._drawn: dict[str, int] = {}  # the clock when a problem was drawn last
        self._epochs: dict[str, tuple[int, int]] = {}  # of a stream: its epoch, the clock then
        self._shares: dict[str, dict[str, int]] = {}
        self._lots: dict[str, int] = {}
        self._orders: dict[str, tuple[int, list[str]]] = {}

    # --- Epochs ----------------------------------------------------------------------------

    def epoch(self, name: str, pool: Collection[str], n: int) -> list[str]:
        """The next `n` of a pool in a stream's shuffled epochs, or all of it if it is smaller.

        The rest of an epoch is followed by the beginning of the next one, without repetition.
        """
        members = set(pool)
        taken = self._take(name, members, n)
        if len(taken) < min(n, len(members)):
            self._clock += 1
            self._epochs[name] = (self._epoch(name)[0] + 1, self._clock)
            taken += self._take(name, members - set(taken), n - len(taken))
        return taken

    def _take(self, name: str, members: Collection[str], n: int) -> list[str]:
        epoch, began = self._epoch(name)
        left = (i for i in self._order(name, epoch) if i in members)
        taken = [id for id in left if self._drawn.get(id, -1) < began][:n]
        self._drawn |= dict.fromkeys(taken, self._clock)
        return taken

    def _epoch(self, name: str) -> tuple[int, int]:
        return self._epochs.get(name, (0, 0))

    def _order(self, name: str, epoch: int) -> list[str]:
        """The order of all problems in an epoch; the unnamed stream has `PromptSampler`'s."""
        if self._orders.get(name, (None,))[0] != epoch:
            seed = f"{self._seed}{name}/{epoch}"
            self._orders[name] = epoch, shuffled(self._ids, seed)
        return self._orders[name][1]

    # --- Shares ----------------------------------------------------------------------------

    def shares(
        self, name: str, weights: Mapping[str, float], sizes: Mapping[str, int], n: int
    ) -> list[str]:
        """The part that each of the next `n` draws comes from, by weights.

        Of any k draws in a row, a part of share λ has more than λk − 2 and fewer than λk + 2, and
        of the first k, within 1 − 1/(2m − 2) of λk, with m parts (R. Tijdeman, The chairman
        assignment problem, Discrete Mathematics 32, 1980): exactly λk where these are whole
        numbers. `sizes` are the numbers of problems that the parts have left. A part that runs out
        leaves its draws to the others, and the counts begin anew.
        """
        total = sum(map(_exact, weights.values()))
        wanted = {part: _exact(weight) / total for part, weight in weights.items() if weight > 0}
        counts = self._shares.setdefault(name, {})
        left, picks, short = dict(sizes), [], False
        for _ in range(min(n, sum(sizes.values()))):
            pick = _next_part(wanted, counts)
            if not left.get(pick):
                short = True
                pick = _largest_deficit(wanted, counts, [part for part in sizes if left[part]])
            counts[pick] = counts.get(pick, 0) + 1
            left[pick] -= 1
            picks.append(pick)
        if short:
            self._shares[name] = {}
        return picks

    # --- Lots ------------------------------------------------------------------------------

    def lots(self, name: str, pool: Collection[str]) -> dict[str, float]:
        """For each of a pool a number from the open interval (0, 1); others at each call."""
        draw = self._lots[name] = self._lots.get(name, 0) + 1
        return {id: _uniform(f"{self._seed}{name}/lots/{draw}/{id}") for id in pool}

    # --- State -----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All of it, as plain JSON values."""
        return {
            "clock": self._clock,
            "drawn": dict(self._drawn),
            "epochs": {name: list(epoch) for name, epoch in self._epochs.items()},
            "shares": {name: dict(counts) for name, counts in self._shares.items()},
            "lots": dict(self._lots),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues where `state` was saved."""
        self._clock, self._drawn = state["clock"], dict(state["drawn"])
        self._epochs = {name: (epoch, began) for name, (epoch, began) in state["epochs"].items()}
        self._shares = {name: dict(counts) for name, counts in state["shares"].items()}
        self._lots = dict(state["lots"])


def _exact(weight: float) -> Fraction:
    """A decimal number as it was written: 0.1 is a tenth."""
    return Fraction(str(weight))


def _deficit(wanted: Mapping[str, Fraction], counts: Mapping[str, int], part: str) -> Fraction:
    """λ·t − x: how far a part that has been drawn x times lags behind at the draw number t."""
    number = sum(counts.values()) + 1
    return wanted.get(part, Fraction(0)) * number - counts.get(part, 0)


def _next_part(wanted: Mapping[str, Fraction], counts: Mapping[str, int]) -> str:
    """Tijdeman's choice: of the parts that may be drawn, the one that must be drawn soonest."""
    if len(wanted) == 1:
        return next(iter(wanted))
    slack = Fraction(1, 2 * len(wanted) - 2)
    deficits = {part: _deficit(wanted, counts, part) for part in wanted}
    ready = [part for part, deficit in deficits.items() if deficit >= slack]
    return min(ready, key=lambda part: ((1 - slack - deficits[part]) / wanted[part], part))


def _largest_deficit(
    wanted: Mapping[str, Fraction], counts: Mapping[str, int], parts: Sequence[str]
) -> str:
    """The part that lags most; one without a share only where no other is left."""
    return max(parts, key=lambda part: (part in wanted, _deficit(wanted, counts, part), part))


def _uniform(text: str) -> float:
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 12
    return (number + 0.5) / 2**52
