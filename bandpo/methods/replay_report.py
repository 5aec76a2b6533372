"""A replay as tables for the terminal and as a figure."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize, PowerNorm, TwoSlopeNorm
from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from bandpo.loss.diagnostics import BINS, EDGES
from bandpo.methods.palette import ink_on
from bandpo.methods.replay import Replay

# Each bin by its upper edge.
BIN_LABELS = (*(f"<{edge:g}" for edge in EDGES), "≤1")


class Quantity(NamedTuple):
    """A value of a cell: the sign of the advantage that it is for, its format and its colours."""

    title: str
    key: str
    sign: str
    written: Callable[[float], str]
    colours: str
    scale: Callable[[], Normalize]


def _percent(share: float) -> str:
    """In percent; only exactly 0 and 1 are written as 0 and 100."""
    if share in (0, 1):
        return f"{share:.0%}".removesuffix("%")
    if 0 < share < 0.0005:
        return "<0.1"
    return ">99.9" if 0.9995 <= share < 1 else f"{100 * share:.1f}"


def _ratio(bound: float) -> str:
    if bound >= 1000:
        return f"{bound:.0e}".replace("e+0", "e")
    if 0 < bound < 0.001:
        return "<.001"
    if bound < 0.1:
        return f"{bound:.2g}"
    return f"{bound:.4f}" if 0 < abs(bound - 1) < 0.001 else f"{bound:.3g}"


def _clipped(sign: str, bound: str, key: str) -> Quantity:
    # The square root makes a difference of a few percent visible beside one of half.
    scale = partial(PowerNorm, 0.5, 0, 1, clip=True)
    title = f"clipped at the {bound} bound, % of the tokens"
    return Quantity(title, key, sign, _percent, "Blues", scale)


def _kept(sign: str) -> Quantity:
    # Below 100% is purple, above it orange.
    scale = partial(TwoSlopeNorm, 1, 0, 2)
    return Quantity("gradient mass kept, %", "gradient_kept", sign, _percent, "PuOr_r", scale)


def _bound(
    sign: str, bound: str, key: str, colours: str, scale: Callable[[], Normalize]
) -> Quantity:
    return Quantity(f"mean {bound} bound of the ratio", key, sign, _ratio, colours, scale)


# The darker, the more is clipped, lost, or allowed.
QUANTITIES = (
    _clipped("positive", "upper", "clip_high_frac"),
    _kept("positive"),
    _bound("positive", "upper", "high_mean", "YlGn", partial(LogNorm, 1, 20, clip=True)),
    _clipped("negative", "lower", "clip_low_frac"),
    _kept("negative"),
    _bound("negative", "lower", "low_mean", "YlGn_r", partial(Normalize, -0.3, 1)),
)
SIGNED = {"positive": "A > 0", "negative": "A < 0"}


class Cells:
    """The cells of a replay by method, bin and sign."""

    def __init__(self, replayed: Replay) -> None:
        self._rows = {
            part.method.name: {(row["bin"], row["advantage"]): row for row in part.cells()}
            for part in replayed.methods
        }
        self.methods = list(self._rows)

    def values(self, method: str, quantity: Quantity) -> list[float | None]:
        """The quantity in every bin; None where there are no tokens."""
        rows = self._rows[method]
        return [rows.get((name, quantity.sign), {}).get(quantity.key) for name in BINS]

    def tokens(self, sign: str) -> list[int]:
        """The tokens of every bin, the same for all methods."""
        rows = next(iter(self._rows.values()))
        return [rows.get((name, sign), {}).get("tokens", 0) for name in BINS]


def tables(replayed: Replay) -> Iterator[Table]:
    """The totals, then clip rate, gradient kept and mean bound by bin for either sign."""
    yield _totals(replayed)
    cells = Cells(replayed)
    for quantity in QUANTITIES:
        table = _table(f"{SIGNED[quantity.sign]}: {quantity.title}, by old probability")
        table.add_column("method", no_wrap=True)
        for label in BIN_LABELS:
            table.add_column(label, justify="right", no_wrap=True)
        table.add_row("(tokens)", *map(_short, cells.tokens(quantity.sign)), style="dim")
        for method in cells.methods:
            values = cells.values(method, quantity)
            table.add_row(method, *("" if v is None else quantity.written(v) for v in values))
        yield table


def _totals(replayed: Replay) -> Table:
    table = _table(f"{replayed.tokens:,} tokens of {replayed.sequences:,} sequences, in %")
    table.caption = (
        "clipped: of all tokens, gradient removed at the upper or lower bound or by the dual clip\n"
        "kept: Σ|∂objective/∂log π| of Σ r·|A|, the mass of the unclipped objective\n"
        "reversed: the part of it that points against the advantage\n"
    )
    table.caption_justify = "left"
    table.add_column("method", no_wrap=True)
    for name in ("high", "low", "dual", "kept", "reversed"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    keys = ("clip/high_frac", "clip/low_frac", "clip/dual_frac")
    for part in replayed.methods:
        total = part.total()
        shares = [total[key] for key in (*keys, "gradient_kept", "gradient_reversed")]
        written = ("" if share is None else _percent(share) for share in shares)
        table.add_row(part.method.name, *written, part.method.note)
    for name, reason in replayed.skipped.items():
        table.add_row(name, *[""] * 5, f"skipped: {reason}")
    return table


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0)


def write(replayed: Replay, folder: Path) -> list[Path]:
    """Writes replay.json, everything in numbers, and replay.png, heat maps of the tables."""
    numbers, figure = folder / "replay.json", folder / "replay.png"
    numbers.write_text(json.dumps(replayed.to_json(), indent=2) + "\n", encoding="utf-8")
    draw(replayed, figure)
    return [numbers, figure]


def draw(replayed: Replay, target: Path) -> None:
    """Heat maps: methods by bins of old probability, one row of maps per sign of the advantage."""
    cells = Cells(replayed)
    figure = Figure(figsize=(17, 2.4 + 0.54 * len(cells.methods)), layout="constrained")
    grid = figure.subplots(2, 3, sharey=True)
    for axes, quantity in zip(grid.flat, QUANTITIES, strict=True):
        _heat_map(axes, cells, quantity)
    figure.suptitle(
        f"The same {replayed.tokens:,} tokens ({replayed.sequences:,} sequences) under each method",
        fontsize=14,
    )
    notes = [f"{p.method.name}: {p.method.note}" for p in replayed.methods if p.method.note]
    figure.supxlabel("      ".join(notes), fontsize=9)
    figure.savefig(target, dpi=110)


def _heat_map(axes: Axes, cells: Cells, quantity: Quantity) -> None:
    rows = [cells.values(method, quantity) for method in cells.methods]
    shades = np.ma.masked_invalid(np.array(rows, dtype=float))
    image = axes.imshow(shades, cmap=quantity.colours, norm=quantity.scale(), aspect="auto")
    for (i, j), value in np.ndenumerate(shades.filled(np.nan)):
        if not np.isnan(value):
            red, green, blue, _ = image.cmap(image.norm(value))
            text, ink = quantity.written(float(value)), ink_on(red, green, blue)
            axes.text(j, i, text, ha="center", va="center", color=ink, fontsize=8)
    counts = zip(BIN_LABELS, cells.tokens(quantity.sign), strict=True)
    axes.set_xticks(range(len(BINS)), [f"{label}\n{_short(n)}" for label, n in counts], fontsize=8)
    axes.set_yticks(range(len(cells.methods)), cells.methods, fontsize=9)
    axes.set_title(f"{SIGNED[quantity.sign]}: {quantity.title}", fontsize=11)
    axes.set_xlabel("old probability of the token, and number of tokens", fontsize=9)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    _gridlines(axes, len(rows))


def _gridlines(axes: Any, rows: int) -> None:
    axes.set_xticks(np.arange(len(BINS) - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(rows - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="minor", length=0)


def _short(tokens: float) -> str:
    for unit in ("", "k", "M"):
        if tokens < 1000:
            return f"{tokens:.3g}{unit}"
        tokens /= 1000
    return f"{tokens:.3g}G"
