"""The trust regions as figures: ratio bounds and feasible probability change by old probability."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bandpo.errors import UserError
from bandpo.methods.method import Method, single_tokens
from bandpo.methods.palette import COLOURS, DASHES

LEAST = 1e-5  # the smallest probability that is drawn
POINTS = 600


@dataclass(frozen=True)
class Curve:
    """Ratio bounds over old probabilities p, shared by the methods named in the label."""

    label: str
    p: np.ndarray
    low: np.ndarray
    high: np.ndarray


def curves(methods: Sequence[Method], entropy: float) -> list[Curve]:
    """The methods' bounds, those that do not clip last; methods with equal bounds share a curve.

    Half of the points are spaced evenly in log(p), half in log(1−p): as p → 1 bounds close, and
    DCPO leaves the simplex. Methods without bounds are skipped; raises UserError where all are.
    """
    rare, likely = (np.geomspace(start, 0.5, POINTS // 2) for start in (LEAST, 1e-4))
    p = np.concatenate([rare, 1 - likely[::-1][1:]])
    found: dict[Any, Curve] = {}
    for method in methods:
        if not method.has_bounds:
            continue
        interval = method.interval(torch.from_numpy(p), entropy)
        low, high = (bound.numpy() for bound in interval)
        key = (method.note, low.round(9).tobytes(), high.round(9).tobytes())
        name = _named(method, entropy)
        label = f"{found[key].label}, {name}" if key in found else name
        found[key] = Curve(label, p, low, high)
    if not found:
        names = ", ".join(method.name for method in methods)
        raise UserError(f"--methods {names}: no bounds to draw; `bandpo explain` shows weights")
    return [
        Curve(f"{curve.label} ({note})" if note else curve.label, p, curve.low, curve.high)
        for (note, *_), curve in sorted(found.items(), key=lambda item: bool(item[0][0]))
    ]


def _named(method: Method, entropy: float) -> str:
    follows_entropy = method.missing_inputs(single_tokens(torch.tensor([0.5]), 1.0, 1.0))
    return f"{method.name} at {entropy:g} nats" if follows_entropy else method.name


def plot_bounds(methods: Sequence[Method], target: Path, entropy: float = 0.5) -> Path:
    """Draws the bounds of the ratio (left) and of the probability's change (right).

    `entropy` [nats] is that of the old policy, for methods whose radius follows it.
    Source of the two figures: BandPO, the comparison of clipping bounds.
    """
    figure = Figure(figsize=(13, 8.6))
    grid = figure.subplots(2, 2, sharex=True, gridspec_kw={"hspace": 0.08, "wspace": 0.2})
    (ratio_up, change_up), (ratio_down, change_down) = grid
    drawn = curves(methods, entropy)
    for index, curve in enumerate(drawn):
        style: dict[str, Any] = {
            "color": COLOURS[index % len(COLOURS)],
            "linestyle": DASHES[index % len(DASHES)],
            # Thinner on thicker, so that curves that coincide are all visible.
            "linewidth": 2.8 - 1.4 * index / max(1, len(drawn) - 1),
        }
        p, low, high = curve.p, curve.low, curve.high
        ratio_up.plot(p, high, label=curve.label, **style)
        ratio_down.plot(p, low, **style)
        change_up.plot(p, (high - 1) * p, **style)
        change_down.plot(p, (1 - low) * p, **style)
    _simplex(grid, drawn[0].p)
    _ratio_axes(ratio_up, ratio_down)
    _change_axes(change_up, change_down)
    for axes in (ratio_down, change_down):
        axes.set_xlabel("old probability p of the token")
    columns = 3 if len(drawn) <= 6 else 4
    rows = -(-len(drawn) // columns)
    figure.subplots_adjust(left=0.07, right=0.985, top=0.95, bottom=0.085 + 0.026 * rows)
    handles, labels = ratio_up.get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=columns, frameon=False)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=140)
    return target


def _simplex(grid: np.ndarray, p: np.ndarray) -> None:
    """The limits of probabilities, 0 <= q <= 1, as the edge of a shaded region."""
    edges = (((1 / p, 1e9), (1 - p, 1e9)), ((0 * p, -1.0), (p, 1e9)))
    for row, limits in zip(grid, edges, strict=True):
        for axes, (edge, beyond) in zip(row, limits, strict=True):
            axes.fill_between(p, edge, beyond, color="0.88", linewidth=0, zorder=0)
            axes.plot(p, edge, color="0.5", linewidth=1, zorder=1)


def _ratio_axes(up: Axes, down: Axes) -> None:
    ticks = (1, 1.2, 1.5, 2, 3, 5, 10, 20)
    up.set(yscale="log", ylim=(0.99, 20), ylabel="upper bound", title="bounds of the ratio r = q/p")
    up.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    up.set_yticks([], minor=True)
    down.set(ylim=(-0.06, 1.01), ylabel="lower bound")
    _region(up, 0.92, 0.9, "q > 1")
    _region(down, 0.08, 0.026, "q < 0")


def _change_axes(up: Axes, down: Axes) -> None:
    up.set(yscale="log", ylim=(1e-6, 5), ylabel="growth q − p", title="feasible change of p")
    down.set(yscale="log", ylim=(5, 1e-6), ylabel="fall p − q")
    _region(up, 0.08, 0.95, "q > 1")
    _region(down, 0.08, 0.1, "q < 0")
    for axes in (up, down):
        axes.set(xscale="log", xlim=(LEAST, 1))


def _region(axes: Axes, x: float, y: float, text: str) -> None:
    axes.text(x, y, text, transform=axes.transAxes, ha="center", va="center", color="0.35")
    axes.grid(color="0.93", zorder=0)
    axes.set_axisbelow(True)
