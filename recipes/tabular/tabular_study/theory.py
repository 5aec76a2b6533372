"""How far one rare success can rise in a rollout, and past whom: docs/tabular.md derives it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from bandpo.loss import Bounds


def log_ratio_gained(reach: float, inner: int) -> float:
    """The log-ratio u that an unclipped rare success gains in `inner` gradient steps.

    The ratio multiplies its own gradient: u ← u + (reach/inner)·e^u from u = 0. For many steps it
    is −ln(1 − reach), which no bound stops at reach 1; for a single one it is the reach.
    """
    u = 0.0
    for _ in range(inner):
        u += reach / inner * math.exp(min(u, 50.0))
    return u


def reach_to_meet(bound: float, inner: int) -> float:
    """The least reach at which a rare success meets a ratio bound > 1 within `inner` steps.

    ln(bound) for one step; it falls towards 1 − 1/bound with their number.
    """
    low, high = 0.0, math.log(bound)
    for _ in range(60):
        middle = (low + high) / 2
        met = log_ratio_gained(middle, inner) >= math.log(bound)
        low, high = (low, middle) if met else (middle, high)
    return high


def share_of_reach(successes: float, group_size: int) -> float:
    """The share of the reach that is left when a group has this many successes: A(m)/A(1).

    A(m) = sqrt((G − m)/m) up to a constant: rewards are normalised by their spread.
    """
    return math.sqrt((group_size - successes) / successes / (group_size - 1))


def expected_turn(
    bounds: Bounds, incumbent: float, inner: int, group_size: int
) -> tuple[float, float]:
    """Between which reaches a rare success begins to outgrow an incumbent of this probability.

    It must rise past the incumbent's own upper bound, by a group's only success (first value) or
    beside as many of the incumbent's as are expected (second).
    """
    high = bounds(torch.tensor([incumbent], dtype=torch.float64).log()).high.item()
    alone = reach_to_meet(high, inner)
    beside = 1 + (group_size - 1) * incumbent
    return alone, alone / share_of_reach(beside, group_size)


def turning_point(reaches: Sequence[float], means: torch.Tensor) -> torch.Tensor:
    """Where curves [..., R] over increasing reaches last turn from negative to positive, [...].

    By linear interpolation over ln(reach); the infinite reach where the last mean is not positive,
    0 where none is negative.
    """
    logs = torch.tensor(reaches, dtype=means.dtype).log()
    negative = means <= 0
    positions = torch.arange(len(reaches)).expand_as(negative)
    left = torch.where(negative, positions, -1).amax(-1)
    right = (left + 1).clamp(max=len(reaches) - 1)
    start = left.clamp(min=0)
    low, high = (means.gather(-1, index[..., None])[..., 0] for index in (start, right))
    turn = (logs[start] - low * (logs[right] - logs[start]) / (high - low)).exp()
    turn = torch.where(left < 0, 0.0, turn)
    return torch.where(left == len(reaches) - 1, math.inf, turn)
