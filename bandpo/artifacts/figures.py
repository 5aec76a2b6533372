"""Figures of a run, from its metrics.jsonl and the intervals of its evaluations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import yaml

from bandpo.artifacts.folder import read_metrics
from bandpo.errors import UserError
from bandpo.evaluation.summary import read_summaries
from bandpo.methods.palette import COLOURS, DASHES

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
    """Draws plots/training.png: reward, entropy, clip fractions, and the evaluations.

    Evaluations have their 95% intervals where eval/<step>/summary.json is there.
    """
    from matplotlib.figure import Figure

    lines = read_metrics(folder)
    figure = Figure(figsize=(12, 6.5), layout="constrained")
    *panels, last = figure.subplots(2, 3).flat
    for axes, (title, names) in zip(panels, PANELS, strict=True):
        for name, style in zip(names, styles(), strict=False):
            points = [(line["step"], line[name]) for line in lines if name in line]
            if points:
                axes.plot(*zip(*points, strict=True), label=name, linewidth=1.5, **style)
        axes.set_title(title, fontsize=10)
    _draw_evaluations(last, folder, lines)
    for axes in (*panels, last):
        _count_steps(axes)
        axes.grid(alpha=0.3)
        if axes.has_data():
            axes.legend(fontsize=8)
    figure.suptitle(_name_of(folder))
    return _saved(figure, folder / "plots" / "training.png")


def styles() -> Iterator[dict[str, Any]]:
    """Colours that colour-blind readers can tell apart, then the same with other dashes."""
    for dash in cycle(DASHES):
        for colour in COLOURS:
            yield {"color": colour, "linestyle": dash}


def _draw_evaluations(axes: Any, folder: Path, lines: Sequence[dict[str, Any]]) -> None:
    for name, style in zip(_evaluations(lines), styles(), strict=False):
        _, benchmark, metric = name.split("/")
        evaluated = [line for line in lines if name in line]
        steps, values = ([line[key] for line in evaluated] for key in ("step", name))
        ends = [_interval(folder, step, benchmark, metric) for step in steps]
        lengths = [
            (0.0, 0.0) if end is None else (value - end[0], end[1] - value)
            for value, end in zip(values, ends, strict=True)
        ]
        axes.errorbar(
            *(steps, values),
            yerr=list(zip(*lengths, strict=True)),
            label=f"{benchmark} {metric}",
            **{"marker": "o", "markersize": 4, "capsize": 2, "linewidth": 1.5, **style},
        )
    axes.set_title("evaluation, 95% intervals over problems", fontsize=10)


def _interval(folder: Path, step: int, benchmark: str, metric: str) -> tuple[float, float] | None:
    """The ends of an evaluation's 95% interval; None where they are unknown."""
    try:
        estimate = read_summaries(folder / "eval" / f"{step:06d}")[benchmark].metrics[metric]
    except (UserError, KeyError):
        return None
    if estimate.low is None or estimate.high is None:
        return None
    return estimate.low, estimate.high


def _count_steps(axes: Any) -> None:
    axes.set_xlabel("step")
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)


def _name_of(folder: Path) -> str:
    """The run's name in its config.yaml; that of the folder where there is none."""
    try:
        settings = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        return str(settings["run"]["name"])
    except (OSError, yaml.YAMLError, TypeError, KeyError):
        return folder.resolve().name


def _saved(figure: Any, target: Path) -> Path:
    target.parent.mkdir(exist_ok=True)
    figure.savefig(target, dpi=120)
    return target


def _evaluations(lines: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """The names of mean@n and pass@n of each benchmark, n being all its samples."""
    means = {name for line in lines for name in line if "/mean@" in name}
    passes = {name.replace("/mean@", "/pass@") for name in means}
    there = {name for line in lines for name in line}
    return tuple(sorted(means | passes & there))


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
    for (name, seconds), colour in zip(phases_of(lines).items(), cycle(COLOURS), strict=False):
        share = sum(seconds) / sum(line["time/step_s"] for line in timed)
        label = f"{name} ({share:.0%})"
        axes.bar(steps, seconds, 0.9, bottom=base, label=label, color=colour)
        base = [low + high for low, high in zip(base, seconds, strict=True)]
    hidden = [-line.get("rollout/overlap_s", 0.0) for line in timed]
    if any(hidden):
        axes.bar(
            steps, hidden, 0.9, color=COLOURS[0], alpha=0.4, hatch="//", label="rollout, hidden"
        )
    axes.set(ylabel="seconds", title=f"{_name_of(folder)}: seconds per step by phase")
    _count_steps(axes)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    return _saved(figure, folder / "plots" / "timeline.png")
