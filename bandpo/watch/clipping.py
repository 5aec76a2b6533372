"""Clip rates by old probability, from the metrics `clip/bin_<from>_<to>/…`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from bandpo.watch.series import SeriesFile

MEASURES = ("high_frac", "low_frac", "dual_frac", "mass_removed_frac")
_BIN = re.compile(r"clip/bin_([0-9.e-]+)_([0-9.e-]+)/count")


def rates(metrics: SeriesFile, measure: str, last: int) -> list[dict[str, Any]]:
    """For each bin of probability its tokens and its rate over the last steps, all of them for 0.

    rate = Σ_steps count · rate / Σ_steps count, None without a token.
    """
    return [
        {"from": low, "to": high, **_rate(metrics, f"clip/bin_{low}_{high}", measure, last)}
        for low, high in sorted(_bins(metrics), key=lambda ends: float(ends[0]))
    ]


def _bins(metrics: SeriesFile) -> Iterator[tuple[str, str]]:
    for name in metrics.series:
        if found := _BIN.fullmatch(name):
            yield found[1], found[2]


def _rate(metrics: SeriesFile, prefix: str, measure: str, last: int) -> dict[str, Any]:
    steps, counts = metrics.points(f"{prefix}/count")
    since = metrics.steps[-1] - last if last else -1
    tokens = dict(zip(steps[steps > since], counts[steps > since], strict=True))
    at, values = metrics.points(f"{prefix}/{measure}")
    pairs = [
        (tokens[step], value)
        for step, value in zip(at, values, strict=True)
        if step in tokens and np.isfinite(value)
    ]
    total = sum(count for count, _ in pairs)
    rate = float(sum(count * value for count, value in pairs) / total) if total else None
    return {"tokens": float(np.nansum(list(tokens.values()))), "rate": rate}
