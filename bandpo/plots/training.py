"""Figures of a run, from its metrics.jsonl alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bandpo.errors import UserError

PANELS = (
    ("reward", ("reward/mean",)),
    ("entropy [nats]", ("policy/entropy",)),
    ("clipped tokens", ("clip/high_frac", "clip/low_frac")),
    ("completion length [tokens]", ("length/mean",)),
    ("gradient norm", ("grad/norm",)),
)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, but for a last one that a kill cut in half.

    Raises UserError where there are none.
    """
    path = folder / "metrics.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; is {folder} the folder of a run?") from None
    lines = [line for line in lines if line.endswith("\n")]
    if not lines:
        raise UserError(f"{path} is empty: the run has not finished a step")
    return [json.loads(line) for line in lines]


def plot_training(folder: Path) -> Path:
    """Draws plots/training.png: reward, entropy, clip fractions, and the evaluations."""
    from matplotlib.figure import Figure

    lines = read_metrics(folder)
    panels = [*PANELS, ("evaluation", _evaluations(lines))]
    figure = Figure(figsize=(12, 6.5), layout="constrained")
    for axes, (title, names) in zip(figure.subplots(2, 3).flat, panels, strict=True):
        for name in names:
            _curve(axes, lines, name)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        if axes.has_data():
            axes.legend(fontsize=8)
    target = folder / "plots" / "training.png"
    target.parent.mkdir(exist_ok=True)
    figure.savefig(target, dpi=120)
    return target


def _curve(axes: Any, lines: Sequence[dict[str, Any]], name: str) -> None:
    points = [(line["step"], line[name]) for line in lines if name in line]
    if points:
        marker = "o" if name.startswith("eval/") else None
        axes.plot(*zip(*points, strict=True), label=name, marker=marker, linewidth=1.5)


def _evaluations(lines: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """mean@n and pass@n of each benchmark, n being all the samples: the two ends of accuracy."""
    means = {name for line in lines for name in line if "/mean@" in name}
    return tuple(sorted(means | {name.replace("/mean@", "/pass@") for name in means}))
