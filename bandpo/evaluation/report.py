"""An evaluation to read: a table in the terminal and one self-contained HTML file."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from rich.markup import escape
from rich.table import Table

from bandpo.disk.whole import write_atomically
from bandpo.evaluation import report_figures
from bandpo.evaluation.intervals import Estimate
from bandpo.evaluation.mathml import render
from bandpo.evaluation.metrics import powers_of_two
from bandpo.evaluation.samples import Sample, read_samples
from bandpo.evaluation.summary import ProblemResult, Summary, read_summaries
from bandpo.reward.score import VERDICTS

PAGES = PackageLoader("bandpo.evaluation", ".")
"""The templates of this folder; page.css is the style of every page."""
KINDS = ("mean", "pass", "best", "g-pass", "mg-pass", "maj", "cons")
ERROR = "standard error of mean@n, of samples alone [%]"
TEXT_SHOWN = 80
"""Characters of a problem's text in headings."""


def headline(summary: Summary) -> list[str]:
    """The metrics that a table shows, in its order, where the summary has them.

    pass@1 and avg@n are mean@n, whose row names all three. G-Pass@k is shown for the largest power
    of two of which n samples hold two groups.
    """
    n = summary.n
    passes = [f"pass@{k}" for k in powers_of_two(n) if k > 1]
    half = max((k for k in powers_of_two(n) if 2 * k <= n), default=1)
    stable = [f"g-pass@{half}_0.5", f"g-pass@{half}_1.0", f"mg-pass@{half}"] if half > 1 else []
    accuracies = [f"mean@{n}", *passes, f"best@{n}", *stable, f"maj@{n}", f"cons@{n}"]
    verdicts = [f"{verdict}_frac" for verdict in VERDICTS]
    names = [*accuracies, "length/mean", "length/truncated_frac", *verdicts]
    return [name for name in names if name in summary.metrics]


def title(metric: str) -> str:
    """A metric's name in tables, with its unit."""
    if metric == "length/mean":
        return "tokens"
    if metric.startswith("mean@"):
        return f"{metric}, avg@{metric.partition('@')[2]}, pass@1 [%]"
    if metric.startswith("g-pass@"):
        return f"{metric.replace('_', ', τ = ')} [%]"
    name = metric.removesuffix("_frac").replace("_", " ")
    return f"{'at the token limit' if name == 'length/truncated' else name} [%]"


def _names(summaries: Sequence[Summary]) -> list[str]:
    found = dict.fromkeys(name for summary in summaries for name in headline(summary))
    return sorted(found, key=_place)


def _place(name: str) -> tuple[int, int]:
    """Orders by kind, then by k; what is no accuracy comes last, in its own order."""
    kind, _, rest = name.partition("@")
    k = re.match(r"[0-9]+", rest)
    return (KINDS.index(kind), int(k[0])) if k else (len(KINDS), 0)


def number(name: str, value: float) -> str:
    """Lengths in tokens, everything else in percent."""
    return f"{value:.0f}" if name == "length/mean" else f"{100 * value:.1f}"


def interval(name: str, estimate: Estimate, least: float = 0.0) -> str:
    """The ends of the 95% interval as `number` writes them; `[?]` where they are unknown.

    They are clipped to what is possible: from `least` (-1 for a difference of shares) to 1, and
    any length that is not negative.
    """
    possible = estimate.within(least, math.inf if name == "length/mean" else 1.0)
    if possible.low is None or possible.high is None:
        return "[?]"
    return f"[{number(name, possible.low)}, {number(name, possible.high)}]"


def summary_table(summaries: Sequence[Summary]) -> Table:
    """Metrics by benchmarks, with 95% intervals over problems."""
    table = Table(title="in brackets 95% intervals over problems; ?: unknown", title_justify="left")
    table.add_column("")
    for summary in summaries:
        table.add_column(summary.benchmark, justify="right")
    for name in _names(summaries):
        if name == "length/mean":  # after the accuracies
            table.add_row(ERROR, *map(error_of_mean, summaries))
        table.add_row(title(name), *(_cell(name, summary.metrics) for summary in summaries))
    return table


def error_of_mean(summary: Summary) -> str:
    """The standard error of mean@n over problems and samples, and that over samples alone."""
    known = (summary.standard_error.total, summary.standard_error.samples)
    return ", ".join("?" if error is None else f"{100 * error:.1f}" for error in known)


def protocol_lines(summary: Summary) -> list[str]:
    """The preset that an evaluation follows, its source, and every deviation from it."""
    if not summary.protocol:
        return []
    named = f"protocol {summary.protocol['name']} ({summary.protocol['source']})"
    deviations = summary.protocol["deviations"]
    return [f"{named}, with deviations:", *deviations] if deviations else [f"{named}, followed"]


def _cell(name: str, metrics: Mapping[str, Estimate]) -> str:
    """A number, with its interval where it is an accuracy; empty where the summary lacks it."""
    if name not in metrics:
        return ""
    estimate = metrics[name]
    text = number(name, estimate.value)
    return text + (f" [dim]{escape(interval(name, estimate))}[/dim]" if "@" in name else "")


def write_report(folder: Path, samples_per_problem: int = 8) -> Path:
    """Writes `report.html` from `summary.json` and the samples of an evaluation folder.

    Shows up to `samples_per_problem` completions of each problem, of as many verdicts as
    possible. Model output is escaped; the page has neither scripts nor outside resources.
    """
    summaries = list(read_summaries(folder).values())
    samples = {s.benchmark: read_samples(folder / f"{s.benchmark}.jsonl") for s in summaries}
    template = Environment(loader=PAGES, autoescape=True).get_template("report.html.j2")
    page = template.render(
        title=f"Evaluation of {_evaluated(summaries[0].settings['model'])}",
        protocol=protocol_lines(summaries[0]),
        rows=[_row(name, summaries) for name in _names(summaries)],
        errors={"name": ERROR, "cells": [error_of_mean(summary) for summary in summaries]},
        curves=Markup(report_figures.curves(summaries)),
        lengths=Markup(report_figures.lengths(samples)),
        benchmarks=[
            _benchmark(summary, samples[summary.benchmark], samples_per_problem)
            for summary in summaries
        ],
    )
    path = folder / "report.html"
    # Lone surrogates, which a tokenizer can decode to, have no UTF-8.
    write_atomically(path, page.encode("utf-8", "replace").decode())
    return path


def _evaluated(model: Mapping[str, Any]) -> str:
    if "run" in model:
        return f"{model['run']}, step {model['step']}"
    return str(model.get("path", "a model"))


def _row(name: str, summaries: Sequence[Summary]) -> dict[str, Any]:
    found = [summary.metrics.get(name) for summary in summaries]
    cells = [e and {"value": number(name, e.value), "interval": interval(name, e)} for e in found]
    return {"name": title(name), "cells": cells}


def _benchmark(summary: Summary, samples: Sequence[Sample], limit: int) -> dict[str, Any]:
    name = summary.benchmark
    by_problem: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_problem[sample.problem_id].append(sample)
    texts = problem_texts({problem: own[0].prompt for problem, own in by_problem.items()})
    return {
        "name": name,
        "warnings": summary.warnings,
        "settings": summary.settings,
        "problems": [
            _problem(f"{name}-{i}", texts[result.id], result, by_problem[result.id], limit)
            for i, result in enumerate(summary.problems)
        ],
    }


def problem_texts(prompts: Mapping[str, str]) -> dict[str, str]:
    """The start of each problem's own text, by id: of its prompt without the template.

    The template is what all prompts share, up to the last line break or tag before they differ,
    and from the first one after. The id stands for a problem whose text cannot be told from it.
    """
    whole = set(prompts.values())
    if len(whole) < 2:
        return {problem: problem for problem in prompts}
    start = max(_shared_start(whole).rfind(end) for end in "\n>") + 1
    backwards = _shared_start({prompt[::-1] for prompt in whole})
    stop = max(backwards.rfind(end) for end in "\n<") + 1
    return {
        problem: _start_of(prompt[start : len(prompt) - stop]) or problem
        for problem, prompt in prompts.items()
    }


def _shared_start(texts: Collection[str]) -> str:
    first, last = min(texts), max(texts)  # what these two share, all between them share
    pairs = enumerate(zip(first, last, strict=False))
    return first[: next((i for i, (a, b) in pairs if a != b), len(first))]


def _start_of(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= TEXT_SHOWN else f"{line[:TEXT_SHOWN].rstrip()}…"


def _problem(
    anchor: str, text: str, result: ProblemResult, samples: Sequence[Sample], limit: int
) -> dict[str, Any]:
    shown = _varied(samples, limit)
    share = result.correct / result.n
    return {
        "anchor": anchor,
        "id": result.id,
        "text": text,
        "heading": Markup(render(text)),
        "answer": Markup(_formula(result.answer)),
        "correct": result.correct,
        "n": result.n,
        # red over yellow to green
        "colour": f"hsl({120 * share:.0f} 70% {88 - 18 * share:.0f}%)",
        "prompt": Markup(render(samples[0].prompt)),
        "hidden": len(samples) - len(shown),
        "samples": [_sample(sample) for sample in shown],
    }


def _formula(answer: str) -> str:
    """An answer as HTML, as a formula if it has commands of LaTeX."""
    formula = f"${answer}$" if "\\" in answer and "$" not in answer else answer
    return render(formula)


def _sample(sample: Sample) -> Mapping[str, Any]:
    return {
        "status": sample.verdict,
        "extracted": Markup(_formula(sample.extracted or "")),
        "index": sample.sample,
        "tokens": sample.tokens,
        "text": Markup(render(sample.completion)),
    }


def _varied(samples: Sequence[Sample], limit: int) -> list[Sample]:
    """The first `limit` samples when verdicts alternate, in the order that they were drawn in."""
    turns: dict[str, int] = defaultdict(int)
    ranked = []
    for sample in samples:
        ranked.append((turns[sample.verdict], sample.sample, sample))
        turns[sample.verdict] += 1
    chosen = sorted(ranked, key=lambda entry: entry[:2])[:limit]
    return sorted((sample for _, _, sample in chosen), key=lambda sample: sample.sample)
