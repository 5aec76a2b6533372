"""Figures of a run, from its metrics.jsonl alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bandpo.artifacts.folder import read_metrics
from bandpo.errors import UserError

PANELS = (
    ("reward", ("reward/mean",)),
    ("entropy [nats]", ("policy/entropy",)),
    ("clipped tokens", ("clip/high_frac", "clip/low_frac")),
    ("completion length [tokens]", ("length/mean",)),
    ("gradient norm", ("grad/norm",)),
)
# In the order of a step; other phases follow.
PHASES = ("rollout", "exchange", "logprob", "learn", "sync")


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
    return _saved(figure, folder / "plots" / "training.png")


def _saved(figure: Any, target: Path) -> Path:
    target.parent.mkdir(exist_ok=True)
    figure.savefig(target, dpi=120)
    return target


def _curve(axes: Any, lines: Sequence[dict[str, Any]], name: str) -> None:
    points = [(line["step"], line[name]) for line in lines if name in line]
    if points:
        marker = "o" if name.startswith("eval/") else None
        axes.plot(*zip(*points, strict=True), label=name, marker=marker, linewidth=1.5)


def _evaluations(lines: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """The names of mean@n and pass@n of each benchmark, n being all its samples."""
    means = {name for line in lines for name in line if "/mean@" in name}
    return tuple(sorted(means | {name.replace("/mean@", "/pass@") for name in means}))


def phases_of(lines: list[dict[str, float]]) -> dict[str, list[float]]:
    """Seconds of every phase, and of the rest as `other`, for each line that has a step time."""
    steps = [line for line in lines if "time/step_s" in line]
    names = {name[5:-2] for line in steps for name in line if name.startswith("time/")} - {"step"}
    ordered = [*(p for p in PHASES if p in names), *sorted(names.difference(PHASES))]
    phases = {name: [line.get(f"time/{name}_s", 0.0) for line in steps] for name in ordered}
    claimed = [sum(values) for values in zip(*phases.values(), strict=True)]
    phases["other"] = [line["time/step_s"] - c for line, c in zip(steps, claimed, strict=True)]
    return phases


def plot_timeline(folder: Path) -> Path:
    """Draws plots/timeline.png: the seconds of every step by phase, stacked.

    With `rollout.lag`, the part of a rollout behind the learner's work is drawn below zero. Raises
    UserError where no step has been timed.
    """
    from matplotlib.figure import Figure

    lines = read_metrics(folder)
    timed = [line for line in lines if "time/step_s" in line]
    if not timed:
        raise UserError(f"{folder} has no finished step, so there are no times to draw")
    steps = [line["step"] for line in timed]
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    axes = figure.subplots()
    base = [0.0] * len(steps)
    for name, seconds in phases_of(lines).items():
        share = sum(seconds) / sum(line["time/step_s"] for line in timed)
        axes.bar(steps, seconds, 0.9, bottom=base, label=f"{name} ({share:.0%})")
        base = [low + high for low, high in zip(base, seconds, strict=True)]
    hidden = [-line.get("rollout/overlap_s", 0.0) for line in timed]
    if any(hidden):
        axes.bar(steps, hidden, 0.9, color="C0", alpha=0.4, hatch="//", label="rollout, hidden")
    axes.set(xlabel="step", ylabel="seconds", title="seconds per step by phase")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    return _saved(figure, folder / "plots" / "timeline.png")
