"""The results of finished runs: values by seed and problem, rows of the table, effects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np

from bandpo.artifacts.folder import read_metrics
from bandpo.errors import UserError
from bandpo.evaluation.intervals import Estimate, Mean, mean_of
from bandpo.evaluation.summary import Summary, per_problem_values, read_summaries
from bandpo.tables.runs import PlannedRun, by_cell
from bandpo.tables.statistics import Effect, Values, crossed_mean, effects

AVERAGE = "average"
# Training metrics, as means over the last fifth of the steps, in the units of metrics.jsonl.
TRAINING = (
    *("policy/entropy", "reward/mean", "clip/high_frac", "clip/low_frac"),
    *("reach/above_high_frac", "reach/above_canonical_frac", "length/mean", "policy/kl_ref"),
)
LAST_SHARE = 0.2
# Where a filtering run logs it, its rewards and lengths are of all groups drawn, as in runs that
# do not filter. Earlier versions logged those of the kept groups: another population.
_OF_ALL = "rollout/groups_kept"


@dataclass(frozen=True)
class Entry:
    """One number of the table: obtained, published, and its difference to the first row."""

    obtained: Estimate | None
    paper: float | None = None
    effect: Effect | None = None

    @property
    def to_paper(self) -> Estimate | None:
        """Obtained − paper, with the interval of the obtained value."""
        if self.obtained is None or self.paper is None:
            return None
        paper = self.paper
        return self.obtained.mapped(lambda value: value - paper)


@dataclass(frozen=True)
class Line:
    """A method on a benchmark (or on their average), for one model; percent, by metric."""

    model: str
    method: str
    benchmark: str
    finished: int
    planned: int
    entries: Mapping[str, Entry]


@dataclass(frozen=True)
class Cell:
    """The finished runs of a model and a method, by seed."""

    model: str
    method: str
    planned: int
    runs: Mapping[int, PlannedRun]
    evaluations: Mapping[int, Mapping[str, Summary]]
    training: Mapping[int, Mapping[str, float]]

    def values(self, benchmark: str, metric: str, seeds: Sequence[int]) -> Values:
        """A metric by seed and problem, [S, P]; in [0, 1]."""
        rows = [per_problem_values(self.evaluations[seed][benchmark], metric) for seed in seeds]
        if any(row.keys() != rows[0].keys() for row in rows):
            raise UserError(
                f"{self.model}, {self.method}: {benchmark} has other problems for some seeds"
            )
        return np.array([[row[problem] for problem in rows[0]] for row in rows])

    def problems(self, benchmark: str) -> list[str]:
        """The ids of a benchmark's problems, in their order."""
        first = next(iter(self.evaluations.values()))
        return [problem.id for problem in first[benchmark].problems]


def collect(runs: Sequence[PlannedRun]) -> list[Cell]:
    """The finished runs as cells, in the recipe's order; cells may be empty."""
    cells = []
    for (model, method), seeds in by_cell(runs).items():
        done = {run.seed: run for run in seeds if run.is_finished()}
        cells.append(
            Cell(
                model=model,
                method=method,
                planned=len(seeds),
                runs=done,
                evaluations={
                    seed: read_summaries(run.summary)
                    for seed, run in done.items()
                    if run.config.eval.benchmarks
                },
                training={seed: late_training(run) for seed, run in done.items()},
            )
        )
    return cells


def late_training(run: PlannedRun) -> dict[str, float]:
    """Means of `TRAINING` over the last fifth of a run's steps."""
    lines = [line for line in read_metrics(run.folder) if line["step"] > 0]
    late = lines[-max(1, round(LAST_SHARE * len(lines))) :]
    names = [name for name in TRAINING if any(name in line for line in late)]
    if run.config.rollout.filter_groups and not all(_OF_ALL in line for line in late):
        names = [name for name in names if not name.startswith(("reward/", "length/"))]
    return {name: fmean(line[name] for line in late if name in line) for name in names}


def benchmarks_of(cells: Sequence[Cell]) -> dict[str, int]:
    """Benchmark → samples per problem, of all finished runs.

    Raises UserError where runs of one table were evaluated on different ones.
    """
    found: dict[str, int] = {}
    contents: dict[str, Any] = {}
    for cell in cells:
        for summaries in cell.evaluations.values():
            for name, summary in summaries.items():
                if found.setdefault(name, summary.n) != summary.n:
                    raise UserError(f"{name}: n = {found[name]} in one run, {summary.n} in another")
                content = summary.settings.get("dataset_sha256")
                if contents.setdefault(name, content) != content:
                    raise UserError(
                        f"{name}: {cell.model}, {cell.method} was evaluated on other problems or "
                        "answers than another run (dataset_sha256 in its summary.json)"
                    )
    for cell in cells:
        for summaries in cell.evaluations.values():
            if lacking := found.keys() - summaries.keys():
                missing = ", ".join(sorted(lacking))
                raise UserError(f"{cell.model}, {cell.method} was not evaluated on {missing}")
    return found


def accuracy_lines(cells: Sequence[Cell], expected: Mapping[str, Any]) -> list[Line]:
    """Every method on every benchmark, and on their average where there are several."""
    sizes = benchmarks_of(cells)
    columns = [[name] for name in sizes] + ([list(sizes)] if len(sizes) > 1 else [])
    if len(set(sizes.values())) > 1:
        columns = columns[: len(sizes)]  # mean@32 and mean@8 have no average
    lines: list[Line] = []
    for model in dict.fromkeys(cell.model for cell in cells):
        rows = [cell for cell in cells if cell.model == model]
        for names in columns:
            lines += _column(rows, names, sizes[names[0]], expected.get(model, {}))
    return lines


def _column(
    rows: Sequence[Cell], names: Sequence[str], n: int, expected: Mapping[str, Any]
) -> list[Line]:
    """All methods of a model on one benchmark, or on the average of several."""
    title = names[0] if len(names) == 1 else AVERAGE
    found: list[dict[str, Entry]] = [{} for _ in rows]
    for metric in (f"mean@{n}", f"best@{n}", f"pass@{n}"):
        entries = [_obtained(cell, names, metric) for cell in rows]
        differences = [_difference(rows[0], cell, names, metric) for cell in rows[1:]]
        tested = _effects(differences)
        for i, cell in enumerate(rows):
            published = (expected.get(cell.method) or {}).get(title) or {}
            found[i][metric] = replace(
                entries[i], paper=published.get(metric), effect=tested.get(i)
            )
    return [
        Line(cell.model, cell.method, title, len(cell.runs), cell.planned, entries)
        for cell, entries in zip(rows, found, strict=True)
    ]


def _obtained(cell: Cell, names: Sequence[str], metric: str) -> Entry:
    seeds = sorted(cell.runs)
    if not seeds:
        return Entry(None)
    mean = crossed_mean([cell.values(name, metric, seeds) for name in names])
    return Entry(mean.share.mapped(_percent))


def _percent(value: float) -> float:
    return 100 * value


def _difference(first: Cell, cell: Cell, names: Sequence[str], metric: str) -> Mean | None:
    """cell − first in percent for the seeds that both have, on the same problems; None: no seed."""
    seeds = sorted(first.runs.keys() & cell.runs.keys())
    if not seeds:
        return None
    for name in names:
        if first.problems(name) != cell.problems(name):
            raise UserError(f"{name}: {first.method} and {cell.method} saw different problems")
    own, base = ([c.values(name, metric, seeds) for name in names] for c in (cell, first))
    return crossed_mean([100 * (a - b) for a, b in zip(own, base, strict=True)])


def _effects(differences: Sequence[Mean | None]) -> dict[int, Effect]:
    """The effects of rows 1, 2, … from their differences to row 0, where these are known."""
    known = {i: mean for i, mean in enumerate(differences, 1) if mean}
    return dict(zip(known, effects(list(known.values())), strict=True))


def training_lines(cells: Sequence[Cell]) -> list[Line]:
    """The training metrics of every method, with intervals over seeds, against the first row."""
    lines = []
    for model in dict.fromkeys(cell.model for cell in cells):
        rows = [cell for cell in cells if cell.model == model]
        found: list[dict[str, Entry]] = [{} for _ in rows]
        for name in TRAINING:
            by_seed = [
                {seed: values[name] for seed, values in cell.training.items() if name in values}
                for cell in rows
            ]
            first = by_seed[0]
            changes = [[own[s] - first[s] for s in sorted(first.keys() & own)] for own in by_seed]
            tested = _effects([mean_of(values) if values else None for values in changes[1:]])
            for i, own in enumerate(by_seed):
                obtained = mean_of(list(own.values())).interval if own else None
                found[i][name] = Entry(obtained, effect=tested.get(i))
        lines += [
            Line(cell.model, cell.method, "training", len(cell.runs), cell.planned, entries)
            for cell, entries in zip(rows, found, strict=True)
        ]
    return lines
