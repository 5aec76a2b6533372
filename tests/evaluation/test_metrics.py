"""Every estimator against enumeration of what its docstring says, and against known numbers."""

import itertools
import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import hypergeom

from bandpo.evaluation.metrics import (
    average_per_problem,
    best_at_k,
    best_per_problem,
    maj_at_k,
    majority_per_problem,
    mean_at_k,
    mean_stable_pass_per_problem,
    pass_at_k,
    pass_per_problem,
    powers_of_two,
    stable_pass_per_problem,
)

tables = st.integers(1, 6).flatmap(
    lambda n: st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=1, max_size=4)
)


def enumerate_mean(draws, statistic):
    """Exact mean of a statistic over equally likely draws."""
    results = [statistic(draw) for draw in draws]
    return float(Fraction(sum(map(Fraction, results)), len(results)))


@given(tables, st.data())
@settings(max_examples=60, deadline=None)
def test_pass_best_and_mean_by_enumeration(table, data):
    k = data.draw(st.integers(1, len(table[0])))
    without = [list(itertools.combinations(row, k)) for row in table]
    with_replacement = [list(itertools.product(row, repeat=k)) for row in table]
    by_subset = np.mean([enumerate_mean(draws, any) for draws in without])
    by_bootstrap = np.mean([enumerate_mean(draws, any) for draws in with_replacement])
    by_mean = np.mean([enumerate_mean(d, lambda s: Fraction(sum(s), k)) for d in without])
    assert pass_at_k(table, k) == pytest.approx(by_subset, abs=1e-12)
    assert best_at_k(table, k) == pytest.approx(by_bootstrap, abs=1e-12)
    assert mean_at_k(table, k) == pytest.approx(by_mean, abs=1e-12)


@given(tables, st.data())
@settings(max_examples=60, deadline=None)
def test_stable_pass_by_enumeration(table, data):
    k = data.draw(st.integers(1, len(table[0])))
    threshold = data.draw(
        st.sampled_from([Fraction(0), Fraction(1, 4), Fraction(1, 2), Fraction(1)])
    )
    draws = [list(itertools.combinations(row, k)) for row in table]

    def passes(share):
        return lambda draw: sum(draw) >= max(math.ceil(share * k), 1)

    found = stable_pass_per_problem(table, k, float(threshold))
    expected = [enumerate_mean(own, passes(threshold)) for own in draws]
    assert found.tolist() == pytest.approx(expected, abs=1e-12)
    shares = [Fraction(i, k) for i in range(math.ceil(k / 2) + 1, k + 1)]
    areas = [2 / k * sum(enumerate_mean(own, passes(s)) for s in shares) for own in draws]
    found = mean_stable_pass_per_problem(table, k)
    assert found.tolist() == pytest.approx(areas, abs=1e-12)


def test_stable_pass_lies_between_pass_and_all_right():
    table = np.random.default_rng(3).random((50, 48)) < 0.6
    c = table.sum(1).tolist()
    all_right = [math.comb(right, 16) / math.comb(48, 16) for right in c]
    assert stable_pass_per_problem(table, 16, 0.0) == pytest.approx(pass_per_problem(table, 16))
    assert stable_pass_per_problem(table, 16, 1.0) == pytest.approx(all_right)
    assert stable_pass_per_problem(table, 10, 0.7) == pytest.approx(  # 0.7 · 10 > 7 in floats
        [1 - hypergeom.cdf(6, 48, right, 10) for right in c]
    )
    assert mean_stable_pass_per_problem(np.ones((1, 4), bool), 4).tolist() == [1.0]
    for threshold in (-0.1, 1.1):
        with pytest.raises(ValueError, match="not in"):
            stable_pass_per_problem(table, 16, threshold)
    with pytest.raises(ValueError, match="out of range"):
        stable_pass_per_problem(table, 49, 0.5)


def test_the_average_is_of_the_first_samples():
    table = [[True, False, True, True], [False, False, False, True]]
    assert average_per_problem(table, 2).tolist() == [0.5, 0.0]
    assert average_per_problem(table, 4).mean() == mean_at_k(table, 4)


def vote(sample):
    """1/m if the right answer is among m answers that lead the vote; None abstains."""
    counts = Counter(answer for answer in sample if answer is not None)
    if not counts:
        return Fraction(0)
    lead = [answer for answer, votes in counts.items() if votes == max(counts.values())]
    return Fraction(1, len(lead)) if "gold" in lead else Fraction(0)


@given(st.lists(st.sampled_from(["gold", "a", "b", "c", None]), min_size=1, max_size=9), st.data())
@settings(max_examples=150, deadline=None)
def test_majority_by_enumeration(row, data):
    k = data.draw(st.integers(1, len(row)))
    expected = enumerate_mean(itertools.combinations(row, k), vote)
    correct = [[answer == "gold" for answer in row]]
    assert maj_at_k(correct, k, [row]) == pytest.approx(expected, abs=1e-12)


def test_majority_at_one_is_the_mean_and_without_answers_the_least():
    rng = np.random.default_rng(0)
    correct = rng.random((20, 32)) < rng.random((20, 1))
    answers = rng.integers(0, 5, size=correct.shape).tolist()
    assert maj_at_k(correct, 1, answers) == pytest.approx(mean_at_k(correct, 1))
    bound = majority_per_problem(correct, 32)
    assert (bound <= majority_per_problem(correct, 32, answers) + 1e-12).all()
    c = correct.sum(1)
    assert bound.tolist() == np.where(c > 16, 1.0, np.where(c == 16, 0.5, 0.0)).tolist()


def test_a_sample_that_is_right_votes_with_the_other_right_ones():
    correct = [[True, True, False, False, False]]
    spelled = [["1/2", "0.5", "3", "3", "4"]]  # two spellings of the right answer: two votes
    assert maj_at_k(correct, 5, spelled) == 0.5
    assert maj_at_k(correct, 5, [["1/2", "0.5", "3", None, "4"]]) == 1.0


def test_one_right_answer_of_32_is_0638_with_replacement_and_1_without():
    correct = np.zeros((1, 32), bool)
    correct[0, 5] = True
    assert best_at_k(correct, 32) == pytest.approx(0.6379, abs=1e-4)
    assert pass_at_k(correct, 32) == 1.0
    assert pass_at_k(correct, 16) == pytest.approx(0.5)
    assert best_at_k(correct, 1) == pass_at_k(correct, 1) == mean_at_k(correct, 32) == 1 / 32


def counts_to_table(counts, n=32):
    return np.array([[j < c for j in range(n)] for c in counts])


def test_the_release_log_line_is_consistent():
    """AMC at step 0 of the release's log: mean@32 0.2171875 beside "pass@32" 0.8068.

    The mean says that 278 of 40 · 32 samples were right. Tables with that sum and that best@32
    exist, and on each the release's bootstrap (1000 draws of 32 with replacement) gives
    best@32, not pass@32, within the bootstrap's own error.
    """
    rng = np.random.default_rng(0)
    candidates = []
    while len(candidates) < 3:
        # between 3 and 9 problems without a right sample, the others unevenly hard
        weights = rng.gamma(0.8, size=40) * (np.arange(40) >= rng.integers(3, 10))
        counts = rng.multinomial(278, weights / weights.sum())
        if counts.max() <= 32 and abs(best_at_k(counts_to_table(counts), 32) - 0.8068) < 5e-3:
            candidates.append(counts)
    for counts in candidates:
        table = counts_to_table(counts)
        assert mean_at_k(table, 32) == 0.2171875
        draws = rng.integers(32, size=(1000, 40, 32))
        release = np.take_along_axis(table[None], draws, axis=2).any(2).mean()
        chance = best_per_problem(table, 32)
        error = np.sqrt((chance * (1 - chance)).sum() / 1000) / 40
        assert abs(release - best_at_k(table, 32)) < 4 * error
        assert pass_at_k(table, 32) - release > 10 * error


def test_pass_is_exact_for_many_samples():
    correct = np.zeros((1, 1024), bool)
    correct[0, :3] = True
    # 1 − Π (1 − k/(n − i)) over the three right samples
    expected = 1 - np.prod([1 - 512 / (1024 - i) for i in range(3)])
    assert pass_at_k(correct, 512) == pytest.approx(expected, rel=1e-12)


def test_monotone_and_ordered_over_k():
    rng = np.random.default_rng(1)
    correct = rng.random((30, 32)) < 0.2
    for metric in (pass_per_problem, best_per_problem):
        curve = np.array([metric(correct, k) for k in powers_of_two(32)])
        assert (np.diff(curve, axis=0) >= -1e-12).all()
    for k in powers_of_two(32):
        assert best_at_k(correct, k) <= pass_at_k(correct, k) + 1e-12


def test_powers_of_two():
    assert powers_of_two(1) == [1]
    assert powers_of_two(4) == [1, 2, 4]
    assert powers_of_two(12) == [1, 2, 4, 8, 12]


@pytest.mark.parametrize("metric", [mean_at_k, pass_at_k, best_at_k, maj_at_k])
@pytest.mark.parametrize(
    ("correct", "k"), [([[True]], 0), ([True], 1), ([[]], 1), ([], 1), ([[2, 1]], 1)]
)
def test_wrong_shapes_and_k_are_refused(metric, correct, k):
    with pytest.raises(ValueError):
        metric(correct, k)


def test_k_above_n_is_refused_but_for_best():
    for metric in (mean_at_k, pass_at_k, maj_at_k):
        with pytest.raises(ValueError, match="k = 3"):
            metric([[True, False]], 3)
    assert best_at_k([[True, False]], 3) == 1 - 0.5**3
    with pytest.raises(ValueError, match="shape"):
        maj_at_k([[True, False]], 2, [["a"]])
