"""Figures of an evaluation as inline SVG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import cycle

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from bandpo.evaluation.metrics import powers_of_two
from bandpo.evaluation.samples import Sample
from bandpo.evaluation.summary import Summary
from bandpo.methods.palette import COLOURS


def curves(summaries: Sequence[Summary]) -> str:
    """pass@k (solid, with its interval) and best@k (dotted) over k, one colour per benchmark."""
    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    axes = figure.subplots()
    for summary, colour in zip(summaries, cycle(COLOURS), strict=False):
        ks = powers_of_two(summary.n)
        passed = [summary.metrics[f"pass@{k}"] for k in ks]
        best = [summary.metrics[f"best@{k}"].value for k in ks]
        axes.plot(ks, [e.value for e in passed], "o-", color=colour, label=summary.benchmark)
        # Unknown ends are NaN here, and leave a gap.
        low, high = np.array([(e.low, e.high) for e in passed], dtype=float).T
        axes.fill_between(ks, low, high, color=colour, alpha=0.15, lw=0)
        axes.plot(ks, best, ":", color=colour)
    axes.set_xscale("log", base=2)
    ticks = powers_of_two(max(summary.n for summary in summaries))
    axes.set_xticks(ticks, [str(k) for k in ticks])
    axes.set(xlabel="k", ylabel="pass@k (solid), best@k (dotted)", ylim=(0, 1))
    axes.legend(fontsize="small", frameon=False)
    return _svg(figure)


def lengths(samples: Mapping[str, Sequence[Sample]]) -> str:
    """Histogram of completion lengths in tokens, one line per benchmark."""
    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    axes = figure.subplots()
    longest = max(sample.tokens for group in samples.values() for sample in group)
    for (name, group), colour in zip(samples.items(), cycle(COLOURS), strict=False):
        tokens = [sample.tokens for sample in group]
        densities, edges = np.histogram(tokens, bins=40, range=(0, longest), density=True)
        axes.stairs(densities, edges, color=colour, label=name)
    axes.set(xlabel="tokens of a completion", ylabel="density", yticks=[])
    axes.legend(fontsize="small", frameon=False)
    return _svg(figure)


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    # A fixed salt and no date: the same evaluation gives the same file.
    with matplotlib.rc_context({"svg.hashsalt": "bandpo", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
