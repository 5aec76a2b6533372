"""Crossed means by hand, at the edges and by simulation; Holm against a worked example."""

import re
from pathlib import Path

import interval_coverage
import numpy as np
import pytest
from scipy import stats

from bandpo.evaluation.intervals import mean_of
from bandpo.tables.statistics import crossed_mean, effects, holm

STATISTICS = Path(__file__).resolve().parents[2] / "docs" / "statistics.md"


def half_width(*sources):
    """√Σ t² v of (variance, degrees of freedom)."""
    return sum(stats.t.ppf(0.975, nu) ** 2 * v for v, nu in sources) ** 0.5


def test_a_crossed_table_by_hand():
    # Means by seed 2 and 4 (variance 2), by problem 1, 2 and 6 (variance 7).
    values = np.array([[0.0, 1.0, 5.0], [2.0, 3.0, 7.0]])
    found = crossed_mean([values])
    assert found.value == 3
    assert found.sources == (pytest.approx((2 / 2, 1)), pytest.approx((7 / 3, 2)))
    assert found.interval.half == pytest.approx(half_width((2 / 2, 1), (7 / 3, 2)))


def test_strata_are_averaged_whatever_their_size():
    # Means by seed 1 and 3 in the one, 5 and 5 in the other: 3 and 4 on average (variance 1/2).
    # By problem 1, 3 (variance 2) and 4, 5, 6 (variance 1), each by half in the average.
    a, b = np.array([[0.0, 2.0], [2.0, 4.0]]), np.array([[4.0, 5.0, 6.0], [4.0, 5.0, 6.0]])
    found = crossed_mean([a, b])
    assert found.value == pytest.approx(3.5)
    assert found.sources == (
        pytest.approx((0.5 / 2, 1)),
        pytest.approx((0.25 * 2 / 2, 1)),
        pytest.approx((0.25 * 1 / 3, 2)),
    )


@pytest.mark.parametrize(
    "strata",
    [
        [[[0.7]]],
        [[[0.1, 0.4, 0.9]]],  # one seed
        [[[0.1], [0.4], [0.9]]],  # one problem
        [[[0.25], [0.25]]],  # and two seeds that agree on it
        [[[0.5] * 4] * 3],
        [[[0.0] * 30] * 3],
        [[[0.1, 0.2, 0.3]] * 2],  # the seeds are copies
        [[[0.1] * 5, [0.2] * 5, [0.4] * 5]],  # the problems are copies
        [[[0.1 + 0.2] * 3, [0.3] * 3]],  # equal but for rounding
        [[[0.1, 0.5], [0.4, 0.2]], [[0.3], [0.6]]],  # one problem in one of two benchmarks
    ],
)
def test_what_cannot_be_known_is_not_claimed(strata):
    found = crossed_mean([np.array(values) for values in strata])
    assert found.value == pytest.approx(np.mean([np.mean(values) for values in strata]))
    assert found.p_value is None
    for estimate in (found.interval, found.share):
        assert estimate.low is None and estimate.high is None
    (effect,) = effects([found])
    assert effect.p is None and effect.verdict == ""


def test_a_tie_by_luck_is_not_taken_for_certainty():
    # Seeds and problems have the mean 0.5 each; the values say that this is luck.
    found = crossed_mean([np.array([[0.0, 1.0], [1.0, 0.0]])])
    # Residuals ±1/2: their mean square with one degree of freedom is 1, over four values 1/4.
    assert found.sources == (pytest.approx((0.25, 1)), pytest.approx((0.25, 1)))


SOME = [(0.0, 1.0, 1.0), (0.05, 1.0, 1.0), (0.5, 1.0, 1.0), (0.2, 0.2, 1.0), (1.0, 0.0, 0.1)]


@pytest.mark.parametrize("spread", SOME)
@pytest.mark.parametrize("seeds", [2, 3])
def test_few_seeds_make_wide_intervals_and_not_wrong_ones(seeds, spread):
    # The chance of more than 6.5% misses in 1,500 tables is 1% where 5% is true.
    assert interval_coverage.normal_coverage((seeds, 200), spread, 1500).share > 0.935


@pytest.mark.parametrize("spread", SOME)
def test_many_seeds_cost_little_width(spread):
    """Beside an interval for known variances."""
    assert interval_coverage.normal_coverage((10, 200), spread, 200).width < 1.35


def test_the_average_of_benchmarks_is_covered_too():
    def interval(table):
        return crossed_mean([table[:, :40], table[:, 40:]]).interval

    def draw(rng):
        return interval_coverage.effects_of(rng, (3, 70), (0.3, 1.0, 1.0))

    assert interval_coverage.coverage(draw, interval, 0.0, 1500).share > 0.935


@pytest.mark.parametrize("odds", interval_coverage.ODDS)
def test_accuracies_are_covered_with_three_seeds(odds):
    assert interval_coverage.share_coverage((3, 30), odds, 1000).share > 0.93


@pytest.mark.slow
def test_the_documented_coverage():
    documented, found = (
        [row.split("|")[1:-1] for row in rows if re.match(r"\| [\d%.]+[,:]", row)]
        for rows in (STATISTICS.read_text().splitlines(), interval_coverage.markdown(2000))
    )
    assert [row[0] for row in documented] == [row[0] for row in found]
    for (name, *before), (_, *now) in zip(documented, found, strict=True):
        sizes = [s for s in interval_coverage.SEEDS for _ in interval_coverage.PROBLEMS]
        for seeds, old, new in zip(sizes, before, now, strict=True):
            was, found_now = (float(cell.split("(")[0]) for cell in (old, new))
            assert found_now == pytest.approx(was, abs=2.0), (name, seeds)
            assert found_now > 93.5 or seeds > 3, (name, seeds)


def test_holm_by_hand():
    # Sorted: 0.01 × 4, 0.02 × 3, 0.03 × 2, 0.04 × 1, each at least the one before.
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_a_row_is_better_only_where_interval_and_correction_say_so():
    rng = np.random.default_rng(1)
    noise = rng.normal(0, 1.0, (10, 50))
    clear, nothing = effects([crossed_mean([shift + noise]) for shift in (5, 0.01)])
    assert clear.verdict == "better" and nothing.verdict == ""
    assert effects([crossed_mean([noise - 5])])[0].verdict == "worse"
    # Alone p is below 0.05; beside three others of the same kind it is not.
    values = np.array([0.9, 1.1, 0.2, 1.9, 0.4])
    alone = effects([mean_of(values)])[0]
    assert 0.0125 < alone.p < 0.05 and alone.verdict == "better"
    beside = effects([mean_of(values), *[mean_of(values - 0.9)] * 3])[0]
    assert beside.difference == alone.difference and beside.verdict == ""
    # A row of which nothing is known stands in the family like any other.
    assert effects([mean_of(values), mean_of([0.5])])[0].p == pytest.approx(2 * alone.p)
