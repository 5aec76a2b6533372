"""Means over seeds and problems with their intervals, and differences that are paired by both.

Values are arrays [S, P] of S seeds by P problems, one for each benchmark (a stratum); the quantity
is the mean over strata of their means, as the average column of a table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from bandpo.evaluation.metrics import Estimate

Values = NDArray[np.float64]
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Mean:
    """A mean with its standard error and the degrees of freedom that the error is known with."""

    value: float
    error: float
    freedom: float

    @property
    def interval(self) -> Estimate:
        """Student's 95% interval; as wide as the line where nothing is known of the error."""
        if math.isnan(self.error):
            return Estimate(self.value, -math.inf, math.inf)
        half = self.error and float(stats.t.ppf((1 + CONFIDENCE) / 2, self.freedom)) * self.error
        return Estimate(self.value, self.value - half, self.value + half)

    @property
    def p_value(self) -> float:
        """Of the hypothesis that the mean is 0, two-sided."""
        if math.isnan(self.error):
            return 1.0
        if self.error == 0:
            return float(self.value == 0)
        return float(2 * stats.t.sf(abs(self.value) / self.error, self.freedom))


def crossed_mean(strata: Sequence[Values]) -> Mean:
    """The mean over strata of values [S, P] whose seeds and problems are both samples.

    Var = Var(means by seed)/S + Σ over strata of Var(means by problem)/P, with Satterthwaite's
    degrees of freedom. What neither seed nor problem explains enters both terms, so that the
    interval is rather too wide than too narrow (Owen, The Pigeonhole Bootstrap, has the same
    bias): it covered the truth in 93% to 99% of simulations with 3 to 10 seeds. With one seed it
    speaks of problems alone, with one problem a stratum of seeds alone.
    """
    seeds = strata[0].shape[0]
    share = 1 / len(strata)
    by_seed: Values = share * np.sum([values.mean(axis=1) for values in strata], axis=0)
    # (variance of the mean, degrees of freedom) of every source that can be estimated
    sources = [(by_seed.var(ddof=1) / seeds, seeds - 1)] if seeds > 1 else []
    for values in strata:
        problems = values.shape[1]
        if problems > 1:
            variance = values.mean(axis=0).var(ddof=1) / problems
            sources.append((share**2 * variance, problems - 1))
    value, total = float(by_seed.mean()), sum(variance for variance, _ in sources)
    if not sources:
        return Mean(value, math.nan, math.nan)
    if total == 0:
        return Mean(value, 0.0, 1.0)
    freedom = total**2 / sum(variance**2 / degrees for variance, degrees in sources)
    return Mean(value, math.sqrt(total), freedom)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of a family, adjusted so that the chance of any false claim stays below the level.

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
    """A row against the first: the paired difference, and Holm's p-value among the rows."""

    difference: Estimate
    p: float

    @property
    def verdict(self) -> str:
        """`better` or `worse` where interval and corrected p-value say so, else empty."""
        if self.p >= 1 - CONFIDENCE or self.difference.low <= 0 <= self.difference.high:
            return ""
        return "better" if self.difference.low > 0 else "worse"


def effects(differences: Sequence[Sequence[Values]]) -> list[Effect]:
    """Each row's paired differences to the first (strata of [S, P]) as one family of effects."""
    means = [crossed_mean(strata) for strata in differences]
    adjusted = holm([mean.p_value for mean in means])
    return [Effect(mean.interval, p) for mean, p in zip(means, adjusted, strict=True)]
