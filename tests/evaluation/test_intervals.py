"""Intervals against textbook forms, at the edges, and by how often they hold the truth."""

import math

import numpy as np
import pytest
from scipy import stats

from bandpo.evaluation.intervals import Estimate, Mean, Source, mean_of, paired_difference


def test_one_source_is_students_interval_and_test():
    values = np.array([0.3, 0.1, 0.5, 0.2, -0.1])
    found, test = mean_of(values), stats.ttest_1samp(values, 0.0)
    expected = test.confidence_interval(0.95)
    assert (found.interval.low, found.interval.high) == pytest.approx(tuple(expected))
    assert found.p_value == pytest.approx(test.pvalue)


@pytest.mark.parametrize("freedoms", [(1, 29), (2, 199), (1, 1), (4, 29, 39)])
def test_the_p_value_is_the_level_at_which_the_interval_ends_at_zero(freedoms):
    sources = tuple(Source(0.1 * (i + 1), nu) for i, nu in enumerate(freedoms))
    half = Mean(0.0, sources).interval.high
    squares = sum(stats.t.ppf(0.975, nu) ** 2 * v for v, nu in sources)
    assert half == pytest.approx(math.sqrt(squares))
    assert Mean(half, sources).p_value == pytest.approx(0.05)
    assert Mean(-half, sources).p_value == pytest.approx(0.05)
    assert Mean(0.0, sources).p_value == pytest.approx(1.0)
    assert 0 < Mean(1e9, sources).p_value < 1e-3


@pytest.mark.parametrize(
    "values", [[0.7], [0.0] * 30, [1.0] * 5, [0.1] * 3, [0.1 + 0.2, 0.3], [math.nan, 1.0]]
)
def test_what_cannot_be_known_is_not_claimed(values):
    found = mean_of(values)
    assert found.p_value is None
    for estimate in (found.interval, found.share):
        assert estimate.low is None and estimate.high is None
        assert estimate.half is None and estimate.sign == 0


def test_wrong_shapes_are_refused():
    for values in ([], [[1.0]], 1.0):
        with pytest.raises(ValueError, match="shape"):
            mean_of(values)


def test_a_share_of_ones_and_zeros_is_clopper_and_pearsons_for_a_few_draws_less():
    values = np.array([1.0] * 3 + [0.0] * 37)
    found = mean_of(values).share
    # s²/n = p (1 − p)/(n − 1), and Student's quantile for z.
    draws = 39 * (stats.norm.ppf(0.975) / stats.t.ppf(0.975, 39)) ** 2
    right = draws * 3 / 40
    assert found.low == pytest.approx(stats.beta.ppf(0.025, right, draws - right + 1))
    assert found.high == pytest.approx(stats.beta.ppf(0.975, right + 1, draws - right))
    exact = stats.binomtest(3, 40).proportion_ci()
    assert found.low == pytest.approx(exact.low, abs=0.01)
    assert found.high == pytest.approx(exact.high, abs=0.02)


def test_a_share_stays_between_0_and_1_and_around_its_value():
    rng = np.random.default_rng(0)
    for _ in range(300):
        values = rng.binomial(8, rng.random(rng.integers(2, 40)) ** 4) / 8
        found = mean_of(values).share
        if found.low is not None:
            assert 0 <= found.low <= found.value <= found.high <= 1 and found.low < found.high


@pytest.mark.parametrize("problems", [2, 5, 30])
@pytest.mark.parametrize("odds", [0.0, -2.0])
def test_the_interval_of_an_accuracy_covers_as_often_as_it_says(problems, odds):
    rng = np.random.default_rng(1)
    chances = 1 / (1 + np.exp(-rng.normal(odds, 1.0, (1000, problems))))
    truth = (1 / (1 + np.exp(-rng.normal(odds, 1.0, 200_000)))).mean()
    found = [mean_of(row / 32).share for row in rng.binomial(32, chances)]
    covered = [e.low is None or e.low <= truth <= e.high for e in found]
    assert np.mean(covered) > 0.94


def test_pairing_removes_what_problems_share():
    rng = np.random.default_rng(4)
    difficulty = rng.random(100)
    a, b = difficulty, difficulty + 0.02 + 0.01 * rng.standard_normal(100)
    paired = paired_difference(a, b)
    assert paired.low > 0.015 and paired.high < 0.025 and paired.sign == 1
    assert paired_difference(b, a).sign == -1
    assert paired_difference([0.5], [0.75]) == Estimate(0.25)
    with pytest.raises(ValueError, match="equal shapes"):
        paired_difference(a, b[1:])


def test_an_estimate_in_another_unit():
    percent = Estimate(0.5, 0.25, 1.0).mapped(lambda value: 100 * value)
    assert percent == Estimate(50.0, 25.0, 100.0)
    assert Estimate(0.5).mapped(lambda value: value - 1) == Estimate(-0.5)
