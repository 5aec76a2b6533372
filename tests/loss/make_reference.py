"""Writes reference_bounds.json: Band bounds in 60-digit arithmetic, by bisection of the definition.

    python tests/loss/make_reference.py

Independent of bandpo: it brackets the two roots r of p·f(r) + (1−p)·f((1−r·p)/(1−p)) = δ, or finds
that the divergence stays below δ up to the edge of the simplex, with mpmath alone. Rows are
[old_logp, δ, low, high]; every old_logp is a float32, so that tests feed exactly what was solved.
"""

from __future__ import annotations

import itertools
import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from mpmath import exp, expm1, inf, log, mp, mpf, sqrt

Generator = Callable[[mpf], mpf]

mp.dps = 60

DELTAS = ("1e-4", "1e-3", "0.01", "0.03", "0.05", "0.1", "0.3", "1", "2", "3.5", "5")
LOG_PROBABILITIES = (
    *(0.0, -1e-8, -1e-7, -1e-6, -1e-5, -1e-4, -1e-3, -3e-3, -0.01, -0.02, -0.03, -0.05, -0.07),
    *(-0.1, -0.15, -0.2, -0.3, -0.4, -0.5, -0.6, -0.6931472, -0.8, -1.0, -1.2, -1.5, -2.0, -2.3),
    *(-2.5, -3.0, -3.5, -4.0, -5.0, -6.0, -7.0, -8.5, -10.0, -12.0, -15.0, -20.0, -30.0, -45.0),
    *(-60.0, -70.0, -80.0),
)
DIVERGENCES: dict[str, Generator] = {
    "KL": lambda u: u - 1 - log(u) if u else inf,
    "ReverseKL": lambda u: u * log(u) - u + 1 if u else mpf(1),
    "TotalVariation": lambda u: abs(u - 1) / 2,
    "ChiSquared": lambda u: (u - 1) ** 2,
    "SquaredHellinger": lambda u: (sqrt(u) - 1) ** 2,
    "JensenShannon": lambda u: ((u * log(2 * u / (1 + u)) if u else 0) + log(2 / (1 + u))) / 2,
}


def shrink(f: Generator, a: mpf, b: mpf, delta: mpf) -> tuple[mpf, mpf]:
    """(x, 1 − x) for the least x in [0, 1] with a·f(x) + b·f(1 + a·(1−x)/b) <= delta.

    Bisection over t = logit(1 − x), so that x and 1 − x both keep their digits.
    """

    def divergence(x: mpf, moved: mpf) -> mpf:
        return a * f(x) + b * f(1 + a * moved / b)

    if divergence(mpf(0), mpf(1)) <= delta:
        return mpf(0), mpf(1)
    low, high = mpf(-400), mpf(mp.mpf(10) ** 40)
    for _ in range(330):
        middle = (low + high) / 2
        x, moved = 1 / (1 + exp(middle)), 1 / (1 + exp(-middle))
        low, high = (middle, high) if divergence(x, moved) <= delta else (low, middle)
    return 1 / (1 + exp(low)), 1 / (1 + exp(-low))


def bounds(f: Generator, old_logp: float, delta: mpf) -> tuple[mpf, mpf]:
    """Band's ratio interval; for p = 1 its limit from below."""
    log_p = mpf(old_logp) if old_logp else -(mpf(10) ** -(10**15))
    p, c = exp(log_p), -expm1(log_p)
    return shrink(f, p, c, delta)[0], 1 + c / p * shrink(f, c, p, delta)[1]


def rows(f: Generator) -> Iterator[list[float]]:
    """One row for each probability and radius; a third of both for all divergences but KL."""
    step = 1 if f is DIVERGENCES["KL"] else 3
    for nominal, delta in itertools.product(LOG_PROBABILITIES[::step], DELTAS[::step]):
        old_logp = struct.unpack("f", struct.pack("f", nominal))[0]
        low, high = bounds(f, old_logp, mpf(delta))
        yield [old_logp, float(delta), float(mp.nstr(low, 20)), float(mp.nstr(high, 20))]


def main() -> None:
    lines = [
        f'"{name}": [\n' + ",\n".join(json.dumps(row) for row in rows(f)) + "\n]"
        for name, f in DIVERGENCES.items()
    ]
    path = Path(__file__).with_name("reference_bounds.json")
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
