"""The figures of a table, from the metrics and evaluations of its runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from bandpo.errors import UserError
from bandpo.evaluation.intervals import Estimate
from bandpo.plots.tables import plot_estimates, plot_over_steps
from bandpo.plots.training import read_metrics
from bandpo.tables.results import Line
from bandpo.tables.runs import PlannedRun

ENTROPY = "policy/entropy"
Lines = list[dict[str, float]]


def entropy_figure(runs: Sequence[PlannedRun], folder: Path) -> Path | None:
    """entropy.png: the policy's entropy over steps of every method, finished or not; or None."""
    curves: dict[str, dict[str, list[Lines]]] = {}
    for run in runs:
        lines = metrics_of(run)
        if any(ENTROPY in line for line in lines):
            curves.setdefault(run.model, {}).setdefault(run.method, []).append(lines)
    if not curves:
        return None
    label = "entropy of the policy [nats]"
    return plot_over_steps(curves, ENTROPY, label, folder / "plots" / "entropy.png")


def metrics_of(run: PlannedRun) -> Lines:
    """A run's metrics so far; none where it has not begun, or is cut off in its first line."""
    try:
        return read_metrics(run.folder)
    except (UserError, ValueError):
        return []


def accuracy_figures(lines: Sequence[Line], folder: Path) -> Iterator[Path]:
    """<metric>.png for each metric: every method's estimate, a panel a model and benchmark."""
    finished = [line for line in lines if line.finished]
    for metric in finished[0].entries if finished else ():
        panels: dict[str, dict[str, Estimate]] = {}
        for line in finished:
            estimate = line.entries[metric].obtained
            if estimate:
                panel = panels.setdefault(f"{line.model}: {line.benchmark}", {})
                panel[line.method] = estimate
        if panels:
            target = folder / "plots" / f"{metric.replace('@', '_at_')}.png"
            yield plot_estimates(panels, f"{metric} [%]", target)
