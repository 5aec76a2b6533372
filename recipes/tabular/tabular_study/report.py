"""The study's results as a table and as figures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure

from bandpo.methods.method import load_methods
from bandpo.methods.palette import COLOURS, ink_on
from tabular_study.theory import expected_turn

Results = Mapping[str, Any]
# Below this a change of coverage is no tenth of an action.
LINEAR = 0.01
LEARNED = 0.99


def write_table(results: Results, path: Path) -> None:
    """table.md: the settings, the turning points and the phase diagram in numbers."""
    path.write_text("\n".join(_lines(results)) + "\n", encoding="utf-8")


def _lines(results: Results) -> Iterable[str]:
    baseline, accuracy = results["baseline"], results["accuracy"]
    yield "# Tabular study"
    yield ""
    yield (
        f"`{results['command']}`, {results['date']}: {results['seconds']:.0f} s, "
        f"{results['cpu_seconds']:.0f} s of one core's time, on {results['hardware']['cpu']}, "
        f"torch {results['versions']['torch']}."
    )
    yield ""
    yield (
        f"Changes (Δ) are against `{baseline}`, paired by seed; ± is half a 95% interval of the "
        "mean, ? where its error is unknown; brackets hold the quantiles 10%, 50%, 90% "
        f"over seeds. Every policy is compared where it first is {accuracy:.0%} accurate; the "
        "columns at the end are those of the last rollout."
    )
    yield ""
    for name, reason in results["left_out"].items():
        yield f"- `{name}` is skipped: {reason}."
    for name, setting in results["settings"].items():
        yield from _setting_lines(name, setting, baseline)
    yield from _turn_lines(results["turns"])
    yield from _phase_lines(results["phase"])


def _setting_lines(name: str, setting: Mapping[str, Any], baseline: str) -> Iterable[str]:
    yield f"\n## {name}\n"
    yield f"{setting['description']}.\n"
    columns = (
        *("method", "rollouts", "entropy", "coverage", "Δ coverage", "quantiles", "more / less"),
        *("Δ entropy", "last: Δ entropy", "last: Δ coverage", "> 1.2", "> own", "> Band"),
    )
    yield _row(columns)
    yield _row(["---"] * len(columns))
    for method, row in setting["methods"].items():
        at, last = row["at_accuracy"], row["last"]
        cover, entropy = at["coverage"], at["entropy"]
        changes: list[str] = [""] * 6
        if method != baseline:
            changes = [
                _change(cover),
                _quantiles(cover["change_quantiles"]),
                f"{cover['more']:.0%} / {cover['less']:.0%}",
                _change(entropy),
                _change(last["entropy"]),
                _change(last["coverage"]),
            ]
        shares = (row[f"reach/above_{key}_frac"] for key in ("canonical", "high", "band"))
        yield _row(
            [
                f"`{method}`",
                f"{row['rollouts']:.0f}" if _learned(row) else f"{row['learned']:.0%} learned",
                f"{entropy['mean']:.3f}",
                f"{cover['mean']:.2f} {_quantiles(cover['quantiles'])}",
                *changes,
                *(f"{share:.3f}" for share in shares),
            ]
        )
    yield (
        "\n`> 1.2`, `> own`, `> Band`: shares of the rare tokens (p < 0.1) with positive advantage "
        "whose ratio passed the canonical bound, the method's own, and Band-KL's (the run's "
        "`reach/*`), until all policies had learned."
    )


def _turn_lines(turns: Mapping[str, Any]) -> Iterable[str]:
    yield "\n## Where the change turns positive\n"
    yield (
        "The reach from which on the change is positive, by mean and by median over seeds, with "
        "the 95% interval of the mean's; `below` and `above`: not within the sweep. Expected: for "
        "one success alone and beside the incumbent's, see docs/tabular.md.\n"
    )
    columns = ("varied", "value", "Δ coverage, mean", "median", "Δ entropy, last", "expected")
    yield _row(columns)
    yield _row(["---"] * len(columns))
    for sweep in turns.values():
        for curve in sweep["curves"]:
            coverage, entropy = (
                curve["turns"][key] for key in ("coverage_at_accuracy", "entropy_last")
            )
            yield _row(
                [
                    sweep["title"],
                    label(curve, sweep),
                    _turn(coverage),
                    _reach(coverage["median"]),
                    _turn(entropy) if sweep["fixed"] else "",
                    _expected(curve),
                ]
            )


def _phase_lines(phase: Mapping[str, Any]) -> Iterable[str]:
    yield "\n## Phase diagram: mean Δ coverage by reach\n"
    yield "In bold where the 95% interval of the mean excludes 0; – where not all have learned.\n"
    yield _row(["method", "rare answers at p", *(f"{reach:g}" for reach in phase["reaches"])])
    yield _row(["---"] * (2 + len(phase["reaches"])))
    for curve in sorted(phase["curves"], key=lambda curve: curve["method"]):
        cells = []
        for point in curve["points"]:
            change = point["at_accuracy"]["coverage"]
            text = _signed(change["change"]) if _learned(point) else "–"
            cells.append(f"**{text}**" if _learned(point) and _certain(change) else text)
        yield _row([f"`{curve['method']}`", curve["bandit"], *cells])


def label(curve: Mapping[str, Any], sweep: Mapping[str, Any]) -> str:
    """The settings in which a curve differs from the others of its sweep."""
    varied = (
        key
        for key in ("method", "bandit", "update")
        if len({other[key] for other in sweep["curves"]}) > 1
    )
    return ", ".join(curve[key].replace(":", " ") for key in varied) or curve["method"]


def _expected(curve: Mapping[str, Any]) -> str:
    """The two ends of the derivation, for Band under SGD beside an incumbent."""
    if curve["incumbent"] is None or curve["update"] == "Adam" or "band_kl" not in curve["method"]:
        return ""
    (method,) = load_methods(curve["method"])
    bounds = method.loss.surrogate.surrogate.bounds  # type: ignore[attr-defined]
    edges = expected_turn(bounds, curve["incumbent"], curve["inner"], curve["group_size"])
    return "{:.2f}–{:.2f}".format(*edges)


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _signed(value: float) -> str:
    return f"{value:+.3f}" if abs(value) < 0.1 else f"{value:+.2f}"


def _change(measure: Mapping[str, Any]) -> str:
    known = measure["low"] is not None
    half = f"{(measure['high'] - measure['low']) / 2:.2g}" if known else "?"
    return f"{_signed(measure['change'])} ± {half}"


def _quantiles(values: Sequence[float]) -> str:
    return "[" + ", ".join(_number(values[index]) for index in (0, 2, 4)) + "]"


def _number(value: float) -> str:
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.2g}"


def _reach(value: float | str | None) -> str:
    if value is None:
        return "?"
    return value if isinstance(value, str) else f"{value:.2f}"


def _turn(turn: Mapping[str, Any]) -> str:
    return f"{_reach(turn['mean'])} [{_reach(turn['low'])}, {_reach(turn['high'])}]"


def _learned(row: Mapping[str, Any]) -> bool:
    """Whether nearly all policies reached the accuracy at which they are compared."""
    return bool(row["learned"] >= LEARNED)


def _certain(measure: Mapping[str, Any]) -> bool:
    return measure["low"] is not None and not measure["low"] <= 0 <= measure["high"]


# --- Figures -----------------------------------------------------------------------------------


def draw_settings(results: Results, path: Path) -> None:
    """The distribution over seeds of the change of coverage, a panel per setting."""
    settings = results["settings"]
    count = max(len(setting["methods"]) for setting in settings.values()) - 1
    figure = Figure(figsize=(4.2 * len(settings), 1.6 + 0.27 * count), layout="constrained")
    panels = figure.subplots(1, len(settings), sharey=True, squeeze=False)[0]
    for axes, (name, setting) in zip(panels, settings.items(), strict=True):
        rows = {m: row for m, row in setting["methods"].items() if m != results["baseline"]}
        for height, row in enumerate(rows.values()):
            if not _learned(row):
                share = f"{row['learned']:.0%} learned"
                axes.text(0, height, share, ha="center", va="center", fontsize=7, color="0.45")
                continue
            change = row["at_accuracy"]["coverage"]
            low, lower, median, upper, high = change["change_quantiles"]
            axes.plot([low, high], [height] * 2, color="0.6", linewidth=1.2)
            axes.plot([lower, upper], [height] * 2, color=COLOURS[0], linewidth=5, alpha=0.6)
            axes.plot(median, height, "|", color="black", markersize=11)
            axes.plot(change["change"], height, "D", color=COLOURS[1], markersize=4)
        axes.axvline(0, color="0.3", linewidth=0.8)
        axes.set_xscale("symlog", linthresh=LINEAR)
        axes.set_yticks(range(len(rows)), list(rows))
        axes.set_title(name, fontsize=11)
        axes.grid(axis="x", color="0.9")
        axes.tick_params(labelsize=8)
    panels[0].invert_yaxis()
    figure.supxlabel(
        f"change of coverage against {results['baseline']} at {results['accuracy']:.0%} accuracy: "
        "10–90% (line), 25–75% (bar), median (tick), mean (diamond) over seeds",
        fontsize=9,
    )
    figure.savefig(path, dpi=110)


def draw_phase(results: Results, path: Path) -> None:
    """A panel per method: mean change of coverage over reach and rarity."""
    phase = results["phase"]
    methods = list(dict.fromkeys(curve["method"] for curve in phase["curves"]))
    columns = min(4, len(methods))
    rows = math.ceil(len(methods) / columns)
    figure = Figure(figsize=(4.1 * columns, 0.9 + 2.3 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat
    norm = SymLogNorm(LINEAR, vmin=-2, vmax=2)
    for method, axes in zip(methods, panels, strict=False):
        curves = [curve for curve in phase["curves"] if curve["method"] == method]
        points = [curve["points"] for curve in curves]
        cells = [[point["at_accuracy"]["coverage"] for point in row] for row in points]
        values = np.array([[cell["change"] for cell in row] for row in cells])
        values[[[not _learned(point) for point in row] for row in points]] = np.nan
        image = axes.imshow(values, cmap="PuOr", norm=norm, aspect="auto")
        for (i, j), value in np.ndenumerate(values):
            known = not np.isnan(value)
            text = _signed(value) if known else "not learned"
            style = {"color": ink_on(*image.cmap(norm(value))[:3]) if known else "0.4"}
            if known and not _certain(cells[i][j]):
                style["fontstyle"] = "italic"
            axes.text(j, i, text, ha="center", va="center", fontsize=6.5, **style)
        axes.set_xticks(range(len(phase["reaches"])), [f"{reach:g}" for reach in phase["reaches"]])
        axes.set_yticks(range(len(curves)), [curve["bandit"] for curve in curves])
        axes.set_title(method, fontsize=10)
        axes.tick_params(labelsize=8, length=0)
    for axes in list(panels):
        axes.set_visible(False)
    figure.supxlabel("reach of an update", fontsize=10)
    figure.supylabel("probability of the rare correct answers", fontsize=10)
    figure.colorbar(
        ScalarMappable(norm, "PuOr"),
        ax=figure.axes,
        shrink=0.6,
        label=f"mean Δ coverage against {results['baseline']}",
    )
    figure.savefig(path, dpi=110)


def draw_turns(results: Results, path: Path) -> None:
    """A panel per sweep: mean change of coverage over reach, with its interval, and the median."""
    sweeps = [(sweep, "at_accuracy", "coverage") for sweep in results["turns"].values()]
    # The claim of a turn at ln(cap) was about the entropy after a fixed number of rollouts.
    sweeps += [(sweep, "last", "entropy") for sweep in results["turns"].values() if sweep["fixed"]]
    columns = min(3, len(sweeps))
    rows = math.ceil(len(sweeps) / columns)
    figure = Figure(figsize=(5.2 * columns, 3.9 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for (sweep, when, measure), axes in zip(sweeps, panels, strict=False):
        for curve, colour in zip(sweep["curves"], COLOURS, strict=False):
            points = [point[when][measure] for point in curve["points"]]
            _draw_curve(axes, sweep["reaches"], points, colour, label(curve, sweep))
        axes.axhline(0, color="0.3", linewidth=0.8)
        axes.set_xscale("log")
        axes.set_xticks(sweep["reaches"], [f"{reach:g}" for reach in sweep["reaches"]])
        axes.set_xticks([], minor=True)
        axes.set_yscale("symlog", linthresh=LINEAR)
        where = "at equal accuracy" if when == "at_accuracy" else "after the last rollout"
        axes.set_title(f"{sweep['title']}: Δ {measure} {where}", fontsize=10)
        axes.grid(color="0.92")
        axes.legend(fontsize=7)
        axes.tick_params(labelsize=8)
    for axes in list(panels):
        axes.set_visible(False)
    figure.supxlabel(
        "reach of an update; lines: mean with its 95% interval, dotted: median over seeds",
        fontsize=10,
    )
    figure.savefig(path, dpi=110)


def _draw_curve(
    axes: Axes, reaches: Sequence[float], points: Sequence[Any], colour: str, name: str
) -> None:
    mean, low, high = ([point[key] for point in points] for key in ("change", "low", "high"))
    axes.plot(reaches, mean, color=colour, linewidth=1.6, label=name)
    low, high = np.array([low, high], dtype=float)  # null, where unknown, leaves a gap
    axes.fill_between(reaches, low, high, color=colour, alpha=0.18, linewidth=0)
    median = [point["change_quantiles"][2] for point in points]
    axes.plot(reaches, median, color=colour, linewidth=1, linestyle="dotted")
