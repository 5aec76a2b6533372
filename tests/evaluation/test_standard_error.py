"""The two-level standard error: by hand, by simulation, and where nothing is known."""

import math

import numpy as np
import pytest

from bandpo.evaluation.intervals import Estimate
from bandpo.evaluation.measures.repeats import repeats
from bandpo.evaluation.measures.standard_error import StandardError, standard_error
from bandpo.evaluation.summary import Summary


def test_by_hand():
    # p = 1, 1/2, 0 of two samples
    found = standard_error([[1, 1], [1, 0], [0, 0]])
    assert found.total == pytest.approx(math.sqrt(0.25 / 3))
    assert found.samples == pytest.approx(math.sqrt(0.25 / 1) / 3)
    assert found.problems == pytest.approx(math.sqrt(0.25 / 3 - 0.25 / 9))


def test_the_parts_are_those_of_the_analysis_of_variance():
    rng = np.random.default_rng(1)
    table = rng.random((40, 8)) < rng.beta(1, 2, size=(40, 1))
    count, n = table.shape
    rates = table.mean(1, keepdims=True)
    within = ((table - rates) ** 2).sum() / (count * (n - 1))
    between = n * ((rates - rates.mean()) ** 2).sum() / (count - 1)
    found = standard_error(table)
    assert found.samples**2 == pytest.approx(within / (count * n))
    assert found.problems**2 == pytest.approx((between - within) / n / count)
    assert found.total**2 == pytest.approx(found.samples**2 + found.problems**2)


def test_it_is_unbiased_over_problems_and_over_samples():
    rng = np.random.default_rng(0)
    count, n, draws = 30, 4, 20_000
    rates = rng.beta(0.5, 1.0, size=(draws, count, 1))
    means = (rng.random((draws, count, n)) < rates).mean((1, 2))
    tables = rng.random((2_000, count, n)) < rates[:2_000]
    found = [standard_error(table) for table in tables]
    # other problems and other samples of them
    assert np.mean([e.total**2 for e in found]) == pytest.approx(means.var(ddof=1), rel=0.05)
    # the same problems, other samples
    fixed = rates[0]
    again = (rng.random((draws, count, n)) < fixed).mean((1, 2))
    same = [standard_error(t).samples ** 2 for t in rng.random((2_000, count, n)) < fixed]
    assert np.mean(same) == pytest.approx(again.var(ddof=1), rel=0.05)
    # closed form: Σ q(1 − q)/n / P² for these problems
    exact = float((fixed * (1 - fixed)).sum()) / n / count**2
    assert np.mean(same) == pytest.approx(exact, rel=0.03)


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ([[True]], StandardError(None, None, None)),
        ([[True], [False]], StandardError(0.5, None, None)),
        ([[True, False]], StandardError(None, None, 0.5)),
        ([[True, True], [True, True]], StandardError(0.0, 0.0, 0.0)),
    ],
)
def test_what_is_unknown_is_none(table, expected):
    found = standard_error(table)
    for name in ("total", "problems", "samples"):
        value = getattr(expected, name)
        assert getattr(found, name) == (None if value is None else pytest.approx(value))


def test_a_negative_part_is_none_of_the_error():
    # problems alike, samples apart: less spread between problems than by chance
    found = standard_error([[1, 0], [0, 1], [1, 0]])
    assert found.problems == 0.0 and found.samples > 0


@pytest.mark.parametrize("table", [[], [[]], [True, False]])
def test_another_shape_is_an_error(table):
    with pytest.raises(ValueError, match=r"expected \[problems, n\]"):
        standard_error(table)


def evaluation(mean, error):
    return Summary(
        "toy", {"n": 4}, {"mean@4": Estimate(mean)}, [], (), StandardError(0.1, 0.1, error)
    )


def test_the_spread_over_seeds():
    found = repeats(
        {0: [evaluation(0.5, 0.03)], 1: [evaluation(0.4, 0.04)], 7: [evaluation(0.6, None)]}
    )
    (one,) = found
    assert one.by_seed == {0: 0.5, 1: 0.4, 7: 0.6} and one.metric == "mean@4"
    assert one.mean == pytest.approx(0.5) and one.deviation == pytest.approx(0.1)
    assert (one.least, one.most) == (0.4, 0.6)
    assert one.expected == pytest.approx(math.sqrt((0.03**2 + 0.04**2) / 2))
    (alone,) = repeats({3: [evaluation(0.5, None)]})
    assert alone.deviation is None and alone.expected is None
