"""Means with 95% intervals, which are unknown where the data cannot estimate their error."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

CONFIDENCE = 0.95
# Deviations smaller than this, relative to the largest value, are rounding.
_ROUNDING = 1e-12
_LEAST_P = 1e-100


@dataclass(frozen=True)
class Estimate:
    """A mean with the ends of its interval, both None where its error is unknown."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def half(self) -> float | None:
        """Half of the interval's width."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    @property
    def sign(self) -> int:
        """1 or -1 where the whole interval lies above or below 0, else 0."""
        if self.low is None or self.high is None:
            return 0
        return int(self.low > 0) - int(self.high < 0)

    def within(self, least: float, most: float) -> Estimate:
        """The same estimate, its interval clipped to the values that are possible."""
        if self.low is None or self.high is None:
            return self
        return Estimate(self.value, max(self.low, least), min(self.high, most))

    def mapped(self, function: Callable[[float], float]) -> Estimate:
        """The same estimate in another unit or from another origin; `function` must increase."""
        if self.low is None or self.high is None:
            return Estimate(function(self.value))
        return Estimate(*map(function, (self.value, self.low, self.high)))


class Source(NamedTuple):
    """A part of the variance of a mean, and the degrees of freedom of its estimate."""

    variance: float
    freedom: int


@dataclass(frozen=True)
class Mean:
    """A mean and the sources of its error; without any, the error is unknown.

    Its interval is value ± h with h² = Σ t²(ν) v over the sources' variances v, where t(ν) is
    Student's quantile for ν degrees of freedom. For normal values its coverage is at least 95%,
    whatever the ratio of the variances, as long as they add up to no less than the variance of the
    mean: the chance that χ²(1) stays below x is concave in x, so that it does so below
    Σ w t²(ν) χ²(ν)/ν at least as often as below one of the terms, which is Student's case.

    Source: Banerjee, Approximate Confidence Interval for Linear Functions of Means of k
    Populations When the Population Variances Are Not Equal, Sankhyā 22 (1960). With one source it
    is Student's interval and test.
    """

    value: float
    sources: tuple[Source, ...] = ()

    @property
    def interval(self) -> Estimate:
        """The 95% interval."""
        if not self.sources:
            return Estimate(self.value)
        half = self._half(1 - CONFIDENCE)
        return Estimate(self.value, self.value - half, self.value + half)

    @property
    def share(self) -> Estimate:
        """The 95% interval of a mean of values in [0, 1], within [0, 1] and skewed like them.

        It is Clopper's and Pearson's interval for as many independent draws of 0 and 1 as would
        have an interval of this one's half-width h: z² value (1 − value) / h² of them.

        Source: Korn and Graubard, Confidence Intervals for Proportions with Small Expected Number
        of Positive Counts Estimated from Survey Data, Survey Methodology 24 (1998); their clusters
        are the problems here.
        """
        if not self.sources:
            return Estimate(self.value)
        tail = (1 - CONFIDENCE) / 2
        spread = self.value * (1 - self.value)
        draws = spread * (stats.norm.isf(tail) / self._half(1 - CONFIDENCE)) ** 2
        right = self.value * draws
        low = stats.beta.ppf(tail, right, draws - right + 1)
        high = stats.beta.isf(tail, right + 1, draws - right)
        return Estimate(self.value, min(float(low), self.value), max(float(high), self.value))

    @property
    def p_value(self) -> float | None:
        """Of the hypothesis that the mean is 0, two-sided: the level whose interval ends at 0."""
        if not self.sources:
            return None
        least = math.log(_LEAST_P)

        def excess(log_p: float) -> float:
            return self._half(math.exp(log_p)) - abs(self.value)

        if excess(least) <= 0:
            return _LEAST_P
        return math.exp(optimize.brentq(excess, least, 0.0))

    def _half(self, level: float) -> float:
        return math.sqrt(sum(stats.t.isf(level / 2, nu) ** 2 * v for v, nu in self.sources))


def mean_of(values: ArrayLike) -> Mean:
    """The mean of independent values [N], with Student's interval.

    Its error is unknown where there is one value, where all are equal, or where one is not
    finite. Raises ValueError for another shape or no value.
    """
    sample: NDArray[np.float64] = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or not len(sample):
        raise ValueError(f"expected at least one value, as [N], got shape {sample.shape}")
    value = float(sample.mean())
    if not math.isfinite(value) or negligible(sample - value, sample):
        return Mean(value)
    return Mean(value, (Source(float(sample.var(ddof=1)) / len(sample), len(sample) - 1),))


def paired_difference(a: ArrayLike, b: ArrayLike) -> Estimate:
    """Mean of b − a over the same problems, both [P], with Student's paired interval."""
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if first.shape != second.shape:
        raise ValueError(f"a paired comparison needs equal shapes: {first.shape}, {second.shape}")
    return mean_of(second - first).interval


def negligible(deviations: NDArray[np.float64], values: NDArray[np.float64]) -> bool:
    """Whether deviations of values are no more than rounding errors."""
    return bool(np.abs(deviations).max() <= _ROUNDING * np.abs(values).max())
