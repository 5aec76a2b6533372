"""The figures of a table, from the metrics and evaluations of its runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from bandpo.artifacts.folder import read_metrics
from bandpo.errors import UserError
from bandpo.evaluation.intervals import Estimate
from bandpo.methods.palette import COLOURS, DASHES
from bandpo.tables.results import Line
from bandpo.tables.runs import PlannedRun

ENTROPY = "policy/entropy"
Lines = list[dict[str, float]]
# panel → label → the metrics.jsonl lines of each seed's run
Curves = Mapping[str, Mapping[str, Sequence[Sequence[Mapping[str, Any]]]]]
# panel → label → estimate
Estimates = Mapping[str, Mapping[str, Estimate]]


def entropy_figure(runs: Sequence[PlannedRun], folder: Path) -> Path | None:
    """entropy.png: the policy's entropy of all runs, finished or not; None where none has begun."""
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
    """A run's metrics so far; none if it has not begun, or was cut off in its first line."""
    try:
        return read_metrics(run.folder)
    except (UserError, ValueError):
        return []


def accuracy_figures(lines: Sequence[Line], folder: Path) -> Iterator[Path]:
    """<metric>.png for each metric: every method's estimate, a panel per model and benchmark."""
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


def plot_over_steps(curves: Curves, metric: str, label: str, target: Path) -> Path:
    """A panel per model: each method's mean over seeds, and the range of its seeds."""
    figure = Figure(figsize=(1 + 5 * len(curves), 4.4), layout="constrained")
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    for axes, (title, methods) in zip(panels, curves.items(), strict=True):
        for index, (name, runs) in enumerate(methods.items()):
            steps, low, mean, high = _over_seeds(runs, metric)
            style = {"color": COLOURS[index % len(COLOURS)]}
            dash = DASHES[index // len(COLOURS) % len(DASHES)]
            axes.plot(steps, mean, label=name, linestyle=dash, linewidth=1.6, **style)
            axes.fill_between(steps, low, high, alpha=0.12, linewidth=0, **style)
        axes.set(title=title, xlabel="step", ylabel=label)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, frameon=False)
    return _saved(figure, target)


def _over_seeds(
    runs: Sequence[Sequence[Mapping[str, Any]]], metric: str
) -> tuple[list[int], np.ndarray, np.ndarray, np.ndarray]:
    """Steps that every run has, with the least, mean and greatest value at each."""
    found = [{line["step"]: line[metric] for line in run if metric in line} for run in runs]
    steps = sorted(set.intersection(*(set(run) for run in found)))
    values = np.array([[run[step] for step in steps] for run in found])
    return steps, values.min(axis=0), values.mean(axis=0), values.max(axis=0)


def plot_estimates(estimates: Estimates, label: str, target: Path) -> Path:
    """For every panel a dot and its interval, where known, per row, the first row on top."""
    rows = max(len(panel) for panel in estimates.values())
    figure = Figure(figsize=(1 + 4 * len(estimates), 1.4 + 0.32 * rows), layout="constrained")
    panels = figure.subplots(1, len(estimates), squeeze=False)[0]
    for axes, (title, panel) in zip(panels, estimates.items(), strict=True):
        for y, estimate in enumerate(panel.values()):
            if estimate.low is not None:
                axes.plot([estimate.low, estimate.high], [y, y], color=COLOURS[0], linewidth=2)
            axes.plot(estimate.value, y, "o", color=COLOURS[0])
        axes.set_yticks(range(len(panel)), list(panel))
        axes.invert_yaxis()
        axes.set(title=title, xlabel=label)
        axes.grid(alpha=0.3, axis="x")
    return _saved(figure, target)


def _saved(figure: Figure, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=130)
    return target
