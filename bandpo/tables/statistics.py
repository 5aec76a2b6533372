"""Means over seeds and problems with their intervals, and differences that are paired by both.

Values are arrays [S, P] of S seeds by P problems, one for each benchmark (a stratum); the quantity
is the mean over strata of their means, as the average column of a table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bandpo.evaluation.intervals import CONFIDENCE, Estimate, Mean, Source, negligible

Values = NDArray[np.float64]


def crossed_mean(strata: Sequence[Values]) -> Mean:
    """The mean over strata of values [S, P] whose seeds and problems are both samples.

    Its sources of error are Var(means by seed)/S, with S − 1 degrees of freedom, and for each
    stratum Var(means by problem)/P, with P − 1. What neither seed nor problem explains enters
    both, so that together they expect no less than the variance of the mean, which the interval's
    coverage rests on (`bandpo.evaluation.intervals.Mean`); docs/statistics.md has simulations.
    With one seed, one problem, or seeds or problems that are copies of each other, the error is
    unknown.
    """
    seeds, share = strata[0].shape[0], 1 / len(strata)
    by_seed: Values = share * np.sum([values.mean(axis=1) for values in strata], axis=0)
    value = float(by_seed.mean())
    if seeds < 2 or any(values.shape[1] < 2 for values in strata):
        return Mean(value)
    unexplained = [share**2 * _unexplained(values) for values in strata]
    sources = [_source(by_seed, sum(unexplained))]
    for values, rest in zip(strata, unexplained, strict=True):
        sources.append(_source(share * values.mean(axis=0), rest))
    return Mean(value, tuple(sources) if all(source.variance for source in sources) else ())


def _source(means: Values, rest: float) -> Source:
    """The variance of the mean of `means`, or its unexplained part, `rest`, where they tie."""
    freedom = len(means) - 1
    if negligible(means - means.mean(), means):
        return Source(rest, freedom)
    return Source(float(means.var(ddof=1)) / len(means), freedom)


def _unexplained(values: Values) -> float:
    """The variance of the mean of values [S, P] that neither seeds nor problems explain."""
    seeds, problems = values.shape
    by_seed, by_problem = values.mean(axis=1, keepdims=True), values.mean(axis=0, keepdims=True)
    residual = values - by_seed - by_problem + values.mean()
    if negligible(residual, values):
        return 0.0
    return float((residual**2).sum()) / ((seeds - 1) * (problems - 1) * values.size)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of a family, adjusted to bound the chance of any false claim by the level.

    Source: Holm, A Simple Sequentially Rejective Multiple Test Procedure.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


@dataclass(frozen=True)
class Effect:
    """A row against the first: the paired difference, and Holm's p-value among the rows.

    Where the difference's error is unknown, p is None.
    """

    difference: Estimate
    p: float | None

    @property
    def verdict(self) -> str:
        """`better` or `worse` where interval and corrected p-value say so, else empty."""
        if self.p is None or self.p >= 1 - CONFIDENCE:
            return ""
        return {1: "better", -1: "worse"}.get(self.difference.sign, "")


def effects(differences: Sequence[Mean]) -> list[Effect]:
    """Each row's mean paired difference to the first, all of them as one family of effects.

    A row without a p-value counts in the family as one with p = 1.
    """
    found = [mean.p_value for mean in differences]
    adjusted = holm([1.0 if p is None else p for p in found])
    return [
        Effect(mean.interval, None if p is None else corrected)
        for mean, p, corrected in zip(differences, found, adjusted, strict=True)
    ]
