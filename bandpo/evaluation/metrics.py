"""Accuracy metrics of n samples per problem.

Everywhere `correct` is bool [P, n]: sample j of problem i is right; c_i = Σ_j correct[i, j]. All
but avg@k depend on its counts c_i alone, not on the order of the samples.
Every metric is a mean over problems; the `*_per_problem` form returns its [P] terms, which
`bandpo.evaluation.intervals` makes intervals and paired comparisons from. All of them raise
ValueError for another shape or a k out of range.

How pass@k and best@k differ: with one right answer of 32, pass@32 is 1 (the 32 samples are the
32 drawn) and best@32 is 1 − (31/32)³² ≈ 0.638 (32 draws from them with replacement).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from functools import lru_cache
from math import comb

import numpy as np
from numpy.typing import ArrayLike, NDArray

Values = NDArray[np.float64]
Marks = NDArray[np.bool_]


def mean_per_problem(correct: ArrayLike, k: int) -> Values:
    """c/n: the expected accuracy of one sample, hence of the mean over any k of the n; [P]."""
    table = _table(correct)
    _check_k(k, table.shape[1])
    return table.mean(axis=1)


def average_per_problem(correct: ArrayLike, k: int) -> Values:
    """avg@k, the mean over the first k of the n samples; [P].

    What an evaluation with k samples would have reported; avg@n is mean@n.
    """
    table = _table(correct)
    _check_k(k, table.shape[1])
    return table[:, :k].mean(axis=1)


def pass_per_problem(correct: ArrayLike, k: int) -> Values:
    """1 − C(n−c, k)/C(n, k): the chance that k of the n samples, drawn without replacement,
    hold a right one; the unbiased estimate of "k fresh samples hold a right one". [P].

    Source: Chen et al., Evaluating Large Language Models Trained on Code, section 2.1.
    """
    table = _table(correct)
    n = table.shape[1]
    _check_k(k, n)
    total = comb(n, k)
    return np.array([1 - comb(n - c, k) / total for c in table.sum(axis=1).tolist()])


def best_per_problem(correct: ArrayLike, k: int) -> Values:
    """1 − (1 − c/n)^k: the chance that k draws with replacement hold a right one; [P].

    It is the expectation of the bootstrap whose mean the BandPO release reports as "pass@32".
    As an estimate of "k fresh samples hold a right one" it is biased low. k may exceed n.
    """
    table = _table(correct)
    _check_k(k, None)
    return 1 - (1 - table.mean(axis=1)) ** k


def stable_pass_per_problem(correct: ArrayLike, k: int, threshold: float) -> Values:
    """G-Pass@k_τ: the chance that at least ⌈τk⌉ of k samples are right; [P].

    Σ_{j ≥ m} C(c, j) C(n−c, k−j) / C(n, k) with m = max(⌈τk⌉, 1): the k are drawn from the n
    without replacement. τ → 0 is pass@k, τ = 1 the chance that all k are right. Raises ValueError
    for a τ outside [0, 1].

    Source: Liu et al., Are Your LLMs Capable of Stable Reasoning? (2412.13147).
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"τ = {threshold} is not in [0, 1]")
    # The product is rounded: 0.7 · 10 is a little more than 7.
    least = max(math.ceil(round(threshold * k, 9)), 1)
    return _tails(correct, k)[:, least]


def mean_stable_pass_per_problem(correct: ArrayLike, k: int) -> Values:
    """mG-Pass@k = 2/k Σ_{i=⌈k/2⌉+1}^{k} G-Pass@k_{i/k}; [P].

    Twice the area under G-Pass@k_τ over τ from 1/2 to 1. For an odd k the sum has fewer than k/2
    terms, and a perfect score is (k − 1)/k.

    Source: Liu et al., Are Your LLMs Capable of Stable Reasoning? (2412.13147).
    """
    return 2 / k * _tails(correct, k)[:, math.ceil(k / 2) + 1 :].sum(axis=1)


def _tails(correct: ArrayLike, k: int) -> Values:
    """The chance that at least j of k samples, drawn without replacement, are right; [P, k + 1]."""
    table = _table(correct)
    n = table.shape[1]
    _check_k(k, n)
    return np.array([_tail(n, c, k) for c in table.sum(axis=1).tolist()])


@lru_cache(maxsize=4096)
def _tail(n: int, c: int, k: int) -> tuple[float, ...]:
    """The row of `_tails` for c right samples of n."""
    ways = [comb(c, j) * comb(n - c, k - j) for j in range(k + 1)]
    return tuple(sum(ways[j:]) / comb(n, k) for j in range(k + 1))


def majority_per_problem(
    correct: ArrayLike, k: int, answers: Sequence[Sequence[Hashable | None]] | None = None
) -> Values:
    """The chance that the most frequent answer among k of the n samples is the right one; [P].

    The expectation over all subsets of k samples, drawn without replacement, computed exactly;
    when m answers tie for the lead and the right one is among them, it counts 1/m. All right
    samples are one answer. Wrong samples are one answer where `answers` [P, n] are equal; a wrong
    sample whose answer is None abstains. Without `answers` all wrong samples are one answer,
    which is the least that the metric can be.
    """
    table = _table(correct)
    count, n = table.shape
    _check_k(k, n)
    if answers is None:
        answers = [["wrong"] * n] * count
    if len(answers) != count or any(len(row) != n for row in answers):
        raise ValueError(f"answers must have the shape of correct, {table.shape}")
    values = []
    for marks, row in zip(table.astype(bool), answers, strict=True):
        wrong = Counter(a for a, right in zip(row, marks, strict=True) if not right)
        abstaining = wrong.pop(None, 0)
        rivals = tuple(sorted(wrong.values(), reverse=True))
        values.append(_majority_chance(int(marks.sum()), rivals, abstaining, k))
    return np.array(values)


@lru_cache(maxsize=4096)
def _majority_chance(right: int, rivals: tuple[int, ...], abstaining: int, k: int) -> float:
    """The term of `majority_per_problem` for one problem, from the sizes of its answer groups.

    Σ over votes x for the right answer of C(right, x) · Σ over the rivals' votes, each at most x
    and t of them equal to x, of the ways to draw them / (t + 1), over the C(n, k) subsets.
    """
    favourable = 0.0
    total = comb(right + sum(rivals) + abstaining, k)
    for x in range(1, min(right, k) + 1):
        # ways[s, t]: draws of s samples from the rivals seen so far, t of which have x votes
        ways = {(0, 0): 1}
        rest = sum(rivals)
        for size in rivals:
            rest -= size
            grown: Counter[tuple[int, int]] = Counter()
            for (s, t), number in ways.items():
                for votes in range(min(size, x, k - x - s) + 1):
                    if s + votes + rest + abstaining >= k - x:  # else k can no longer be reached
                        grown[s + votes, t + (votes == x)] += number * comb(size, votes)
            ways = grown
        for (s, t), number in ways.items():
            draws = comb(right, x) * number * comb(abstaining, k - x - s)
            favourable += draws / total / (t + 1)
    return min(favourable, 1.0)


def mean_at_k(correct: ArrayLike, k: int) -> float:
    """Mean over problems of c/n; see `mean_per_problem`. In [0, 1]."""
    return float(mean_per_problem(correct, k).mean())


def pass_at_k(correct: ArrayLike, k: int) -> float:
    """Mean over problems of 1 − C(n−c, k)/C(n, k); see `pass_per_problem`. In [0, 1]."""
    return float(pass_per_problem(correct, k).mean())


def best_at_k(correct: ArrayLike, k: int) -> float:
    """Mean over problems of 1 − (1 − c/n)^k; see `best_per_problem`. In [0, 1]."""
    return float(best_per_problem(correct, k).mean())


def maj_at_k(
    correct: ArrayLike, k: int, answers: Sequence[Sequence[Hashable | None]] | None = None
) -> float:
    """Mean over problems of the majority's chance; see `majority_per_problem`. In [0, 1]."""
    return float(majority_per_problem(correct, k, answers).mean())


def powers_of_two(n: int) -> list[int]:
    """The k at which pass@k is reported: 1, 2, 4, … and n itself."""
    return [*(2**i for i in range(n.bit_length()) if 2**i < n), n]


def _table(correct: ArrayLike) -> NDArray[np.bool_]:
    table = np.asarray(correct)
    if table.ndim != 2 or 0 in table.shape:
        raise ValueError(f"correct must be [problems, n] and not empty, got shape {table.shape}")
    if table.dtype != np.bool_:
        if not np.isin(table, (0, 1)).all():
            raise ValueError("correct must hold only true and false")
        table = table.astype(bool)
    return table


def _check_k(k: int, n: int | None) -> None:
    if k < 1 or (n is not None and k > n):
        raise ValueError(f"k = {k} is out of range for n = {n} samples per problem")
