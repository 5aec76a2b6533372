"""One evaluation with several seeds: how far its accuracy moves by the draw of samples alone."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from rich.table import Table

from bandpo.disk.whole import write_atomically
from bandpo.evaluation.summary import Summary


@dataclass(frozen=True)
class Repeats:
    """mean@n of a benchmark by seed, their mean, standard deviation (ddof 1) and range.

    `expected` is the standard deviation that a single evaluation predicts for them: its standard
    error over samples, squared and averaged over the seeds.
    """

    benchmark: str
    metric: str
    by_seed: Mapping[int, float]
    mean: float
    deviation: float | None
    least: float
    most: float
    expected: float | None


def repeats(by_seed: Mapping[int, Sequence[Summary]]) -> list[Repeats]:
    """The spread of every benchmark's mean@n over the seeds; deviation None for one seed."""
    found = []
    for same in zip(*by_seed.values(), strict=True):
        metric = f"mean@{same[0].n}"
        values = [summary.metrics[metric].value for summary in same]
        errors = [summary.standard_error.samples for summary in same]
        known = [error**2 for error in errors if error is not None]
        found.append(
            Repeats(
                benchmark=same[0].benchmark,
                metric=metric,
                by_seed=dict(zip(by_seed, values, strict=True)),
                mean=fmean(values),
                deviation=stdev(values) if len(values) > 1 else None,
                least=min(values),
                most=max(values),
                expected=fmean(known) ** 0.5 if known else None,
            )
        )
    return found


def write_repeats(folder: Path, found: Sequence[Repeats]) -> Path:
    """Writes `seeds.json`, which has the spread of every benchmark by its name."""
    path = folder / "seeds.json"
    content = {one.benchmark: dataclasses.asdict(one) for one in found}
    write_atomically(path, json.dumps(content, indent=2) + "\n")
    return path


def repeats_table(found: Sequence[Repeats]) -> Table:
    """Benchmarks by seeds, in percent."""
    table = Table(title="mean@n in %, by seed", title_justify="left")
    table.add_column("")
    seeds = list(found[0].by_seed)
    for title in (*map(str, seeds), "mean", "deviation", "expected of one"):
        table.add_column(title, justify="right")
    for one in found:
        cells = [*one.by_seed.values(), one.mean, one.deviation, one.expected]
        shown = ("?" if cell is None else f"{100 * cell:.1f}" for cell in cells)
        table.add_row(f"{one.benchmark} {one.metric}", *shown)
    return table
