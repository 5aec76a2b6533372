"""Intervals against textbook forms and simulations; Holm against a worked example."""

import math

import numpy as np
import pytest
from scipy import stats

from bandpo.tables.statistics import crossed_mean, effects, holm


def test_one_seed_is_students_interval_over_problems():
    values = np.array([[1.0, 2.0, 4.0, 9.0]])
    found = crossed_mean([values]).interval
    low, high = stats.t.interval(0.95, 3, loc=4.0, scale=stats.sem(values[0]))
    assert (found.value, found.low, found.high) == pytest.approx((4.0, low, high))


def test_one_problem_is_students_interval_and_test_over_seeds():
    values = np.array([[0.3], [0.1], [0.5], [0.2]])
    found = crossed_mean([values])
    test = stats.ttest_1samp(values[:, 0], 0.0)
    assert found.p_value == pytest.approx(test.pvalue)
    expected = test.confidence_interval(0.95)
    assert (found.interval.low, found.interval.high) == pytest.approx(tuple(expected))


def test_a_crossed_table_by_hand():
    # Means by seed 2 and 4 (variance 2), by problem 1, 2 and 6 (variance 7).
    values = np.array([[0.0, 1.0, 5.0], [2.0, 3.0, 7.0]])
    found = crossed_mean([values])
    over_seeds, over_problems = 2 / 2, 7 / 3
    assert found.value == 3
    assert found.error**2 == pytest.approx(over_seeds + over_problems)
    freedom = (over_seeds + over_problems) ** 2 / (over_seeds**2 / 1 + over_problems**2 / 2)
    assert found.freedom == pytest.approx(freedom)


def test_strata_are_averaged_whatever_their_size():
    # Means by seed 1 and 3 in the one, 5 and 5 in the other: 3 and 4 on average (variance 1/2).
    a, b = np.array([[1.0, 1.0], [3.0, 3.0]]), np.array([[4.0, 5.0, 6.0], [4.0, 5.0, 6.0]])
    found = crossed_mean([a, b])
    assert found.value == pytest.approx(3.5)
    assert found.error**2 == pytest.approx(0.5 / 2 + 0.25 * (0 / 2 + 1 / 3))


def test_what_cannot_be_known_is_not_claimed():
    single = crossed_mean([np.array([[0.7]])])
    assert single.interval.low == -math.inf and single.p_value == 1.0
    (effect,) = effects([[np.array([[0.7]])]])
    assert effect.verdict == ""
    constant = crossed_mean([np.full((3, 4), 0.5)])
    assert (constant.interval.low, constant.interval.high) == (0.5, 0.5)


@pytest.mark.parametrize("seeds", [3, 10])
@pytest.mark.parametrize("spreads", [(0.02, 0.1, 0.1), (0.05, 0.02, 0.1), (0.0, 0.1, 0.1)])
def test_intervals_cover_the_truth(seeds, spreads):
    of_seed, of_problem, of_cell = spreads
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        seed = rng.normal(0, of_seed, (seeds, 1))
        strata = [
            seed + rng.normal(0, of_problem, (1, p)) + rng.normal(0, of_cell, (seeds, p))
            for p in (40, 30)
        ]
        interval = crossed_mean(strata).interval
        covered += interval.low <= 0 <= interval.high
    assert 0.92 <= covered / 1000 <= 0.99


def test_holm_by_hand():
    # Sorted: 0.01 × 4, 0.02 × 3, 0.03 × 2, 0.04 × 1, each at least the one before.
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_a_row_is_better_only_where_interval_and_correction_say_so():
    rng = np.random.default_rng(1)
    noise = rng.normal(0, 1.0, (10, 50))
    clear, nothing = effects([[5 + noise], [0.01 + noise]])
    assert clear.verdict == "better" and nothing.verdict == ""
    assert effects([[-5 + noise]])[0].verdict == "worse"
    # Alone p is below 0.05; beside three others of the same kind it is not.
    values = np.array([[0.9], [1.1], [0.2], [1.9], [0.4]])
    alone = effects([[values]])[0]
    assert 0.0125 < alone.p < 0.05 and alone.verdict == "better"
    beside = effects([[values], *[[values - 0.9]] * 3])[0]
    assert beside.difference == alone.difference and beside.verdict == ""
