"""The standard error of a mean accuracy, over problems and over samples."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class StandardError:
    """Standard errors of mean@n; None where the data cannot tell.

    `total` is that over other problems and other samples of them, `samples` that over other
    samples of the same problems, and `problems` what other problems add: total² = problems² +
    samples², unless chance makes `samples` the larger one; then `problems` is 0.
    """

    total: float | None = None
    problems: float | None = None
    samples: float | None = None


def standard_error(correct: ArrayLike) -> StandardError:
    """The two-level standard error of the mean of correct [P, n], bool.

    With p_i = c_i/n and their mean p, total² = Σ (p_i − p)² / (P (P − 1)) and samples² =
    Σ p_i (1 − p_i) / (n − 1) / P², both unbiased: for problems with the true rates q_i,
    E[p_i (1 − p_i) / (n − 1)] = q_i (1 − q_i) / n, the variance of p_i. problems² is their
    difference, or 0 where that is negative. One problem leaves `total` unknown, one sample of each
    leaves the parts unknown.

    Source: the analysis of variance of a balanced one-way layout with random effects (Searle,
    Casella and McCulloch, Variance Components, 1992, chapter 3). Raises ValueError for another
    shape.
    """
    table = np.asarray(correct, dtype=np.float64)
    if table.ndim != 2 or 0 in table.shape:
        raise ValueError(f"expected [problems, n], not empty, got shape {table.shape}")
    count, n = table.shape
    rates = table.mean(axis=1)
    total = math.sqrt(rates.var(ddof=1) / count) if count > 1 else None
    if n == 1:
        return StandardError(total)
    samples = math.sqrt((rates * (1 - rates)).sum() / (n - 1)) / count
    problems = None if total is None else math.sqrt(max(total**2 - samples**2, 0.0))
    return StandardError(total, problems, samples)
