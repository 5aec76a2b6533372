"""How often the intervals of tables hold the truth, by simulation.

`python interval_coverage.py` prints the tables of docs/statistics.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import expit

from bandpo.evaluation.intervals import Estimate
from bandpo.tables.statistics import crossed_mean

Table = NDArray[np.float64]
SEEDS = (2, 3, 5, 10)
PROBLEMS = (30, 200)
# Standard deviations of seeds, problems and what neither explains.
SPREADS = (
    *((0.0, 1.0, 1.0), (0.05, 1.0, 1.0), (0.2, 1.0, 1.0), (0.5, 1.0, 1.0)),
    *((0.0, 0.0, 1.0), (0.2, 0.2, 1.0), (1.0, 0.0, 0.1), (0.0, 1.0, 0.1)),
)
# The same of the log-odds, after their mean.
ODDS = (
    *((0.0, 0.1, 1.0, 0.3), (0.0, 0.3, 1.0, 0.3), (0.0, 0.5, 0.2, 0.1)),
    *((-3.0, 0.0, 2.0, 0.0), (-3.0, 0.1, 2.0, 0.3), (-3.0, 0.3, 2.0, 0.5), (-5.0, 0.2, 2.0, 0.3)),
)
SAMPLES = 32


@dataclass(frozen=True)
class Coverage:
    """The share of intervals that held the truth, and the median of their widths."""

    share: float
    width: float


def coverage(
    draw: Callable[[np.random.Generator], Table],
    interval: Callable[[Table], Estimate],
    truth: float,
    draws: int,
) -> Coverage:
    """Of the intervals of so many drawn tables [S, P]; an unknown one claims nothing."""
    rng = np.random.default_rng(0)
    held, widths = 0, []
    for _ in range(draws):
        found = interval(draw(rng))
        if found.low is None or found.high is None:
            held += 1
            continue
        held += found.low <= truth <= found.high
        widths.append(found.high - found.low)
    return Coverage(held / draws, float(np.median(widths)))


def effects_of(
    rng: np.random.Generator, shape: tuple[int, int], spread: tuple[float, float, float]
) -> Table:
    """A crossed table of normal effects."""
    of_seed, of_problem, of_rest = spread
    seeds, problems = shape
    seed = rng.normal(0, of_seed, (seeds, 1))
    return seed + rng.normal(0, of_problem, (1, problems)) + rng.normal(0, of_rest, shape)


def counts_of(
    rng: np.random.Generator, shape: tuple[int, int], odds: tuple[float, float, float, float]
) -> Table:
    """Shares c/32 of right samples whose log-odds are normal effects around their mean."""
    mean, *spread = odds
    return rng.binomial(SAMPLES, expit(mean + effects_of(rng, shape, tuple(spread)))) / SAMPLES


def normal_coverage(shape: tuple[int, int], spread: tuple[float, float, float], draws: int):
    """Of `Mean.interval`; widths are in units of the one for known variances."""
    found = coverage(
        partial(effects_of, shape=shape, spread=spread),
        lambda table: crossed_mean([table]).interval,
        0.0,
        draws,
    )
    seed, problem, rest = (sd**2 for sd in spread)
    seeds, problems = shape
    known = np.sqrt(seed / seeds + problem / problems + rest / (seeds * problems))
    return Coverage(found.share, found.width / (2 * stats.norm.isf(0.025) * known))


def accuracy(odds: tuple[float, float, float, float]) -> float:
    """The mean of expit of a normal: what the shares of `counts_of` are estimates of."""
    mean, *spread = odds
    nodes, weights = np.polynomial.hermite_e.hermegauss(201)
    values = expit(mean + np.linalg.norm(spread) * nodes)
    return float(weights @ values / weights.sum())


def share_coverage(shape: tuple[int, int], odds: tuple[float, float, float, float], draws: int):
    """Of `Mean.share`; widths are in percent."""
    found = coverage(
        partial(counts_of, shape=shape, odds=odds),
        lambda table: crossed_mean([table]).share,
        accuracy(odds),
        draws,
    )
    return Coverage(found.share, 100 * found.width)


def markdown(draws: int) -> Iterator[str]:
    """The two tables of docs/statistics.md."""
    sizes = [(seeds, problems) for seeds in SEEDS for problems in PROBLEMS]
    head = " | ".join(f"{seeds} × {problems}" for seeds, problems in sizes)
    yield f"| seed, problem, rest | {head} |"
    yield "|---|" + "---|" * len(sizes)
    for spread in SPREADS:
        cells = [normal_coverage(shape, spread, draws) for shape in sizes]
        yield row(", ".join(f"{sd:g}" for sd in spread), cells, ".2f")
    yield ""
    yield f"| accuracy: mean, seed, problem, rest | {head} |"
    yield "|---|" + "---|" * len(sizes)
    for odds in ODDS:
        cells = [share_coverage(shape, odds, draws) for shape in sizes]
        name = f"{accuracy(odds):.0%}: " + ", ".join(f"{x:g}" for x in odds)
        yield row(name, cells, ".0f")


def row(name: str, cells: list[Coverage], form: str) -> str:
    """A row of a table: `coverage in percent (width)` for each cell."""
    texts = [f"{100 * cell.share:.1f} ({cell.width:{form}})" for cell in cells]
    return f"| {name} | {' | '.join(texts)} |"


if __name__ == "__main__":
    for line in markdown(draws=4000):
        print(line, flush=True)
