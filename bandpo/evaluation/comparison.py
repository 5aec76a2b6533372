"""Two evaluations over the same problems, and one run's evaluations over time."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from bandpo.errors import UserError
from bandpo.evaluation.intervals import Estimate, paired_difference
from bandpo.evaluation.metrics import powers_of_two
from bandpo.evaluation.report import interval, number, title
from bandpo.evaluation.samples import IRRELEVANT, differences
from bandpo.evaluation.summary import Summary, per_problem_values, read_summaries

# Settings in which two evaluations may differ and still be compared.
COMPARED = IRRELEVANT | {"model"}


@dataclass(frozen=True)
class Difference:
    """One metric of two evaluations, and b − a paired over problems."""

    metric: str
    a: float
    b: float
    paired: Estimate


def compare(a: Summary, b: Summary, force: bool = False) -> list[Difference]:
    """Paired differences of mean@n (which is pass@1 and avg@n) and others on one benchmark.

    The others are pass@k, best@n, mg-pass@n, maj@n and cons@n, as far as both evaluations have
    them. Raises `UserError` if the evaluations differ in anything but the model, unless `force`;
    different problems or sample counts are never compared.
    """
    different = differences(a.settings, b.settings, COMPARED)
    if different and not force:
        raise UserError.join(
            f"{a.benchmark}: these evaluations are not comparable (--force compares them anyway):",
            different,
        )
    if [p.id for p in a.problems] != [p.id for p in b.problems] or a.n != b.n:
        raise UserError(f"{a.benchmark}: a paired comparison needs the same problems and n")
    n = a.n
    passes = [f"pass@{k}" for k in powers_of_two(n) if k > 1]
    names = [f"mean@{n}", *passes, f"best@{n}", f"mg-pass@{n}", f"maj@{n}", f"cons@{n}"]
    found = []
    for name in names:
        if name not in a.metrics or name not in b.metrics:
            continue
        first, second = (list(per_problem_values(s, name).values()) for s in (a, b))
        paired = paired_difference(first, second)
        found.append(Difference(name, a.metrics[name].value, b.metrics[name].value, paired))
    return found


def compare_folders(a: Path, b: Path, force: bool = False) -> dict[str, list[Difference]]:
    """Benchmark → differences for all benchmarks that both folders have."""
    first, second = read_summaries(a), read_summaries(b)
    common = [name for name in first if name in second]
    if not common:
        raise UserError(
            f"no common benchmark: {a} has {', '.join(first)}; {b} has {', '.join(second)}"
        )
    return {name: compare(first[name], second[name], force) for name in common}


BETTER = {1: "B", -1: "A", 0: "unclear"}
"""By the sign of B − A, 0 where its interval contains 0 or is unknown."""


def differences_table(benchmark: str, rows: Sequence[Difference]) -> Table:
    """One benchmark's comparison in percent, with the better one where the interval excludes 0."""
    table = Table(title=f"{benchmark}, in %", title_justify="left")
    for column in ("metric", "A", "B", "B − A", "95% interval, paired", "better"):
        table.add_column(column, justify="left" if column in ("metric", "better") else "right")
    for row in rows:
        table.add_row(
            title(row.metric).removesuffix(" [%]"),
            number(row.metric, row.a),
            number(row.metric, row.b),
            f"{100 * row.paired.value:+.1f}",
            escape(interval(row.metric, row.paired, least=-1.0)),
            BETTER[row.paired.sign],
        )
    return table


def reading(a: Path, b: Path, rows: Sequence[Difference]) -> list[str]:
    """Which folder is A and which is B, and how the table is read, on a benchmark's differences."""
    mean = rows[0]
    better = {1: "B is better than A", -1: "A is better than B"}.get(mean.paired.sign or 0)
    verdict = better or "neither is shown to be better"
    return [
        f"A: {a}",
        f"B: {b}",
        "B − A: positive where B is better. Its interval is paired over the problems: of other "
        "problems like these, the difference lies in it with a confidence of 95%.",
        "better: A or B where 0 is outside the interval, so that chance alone hardly explains the "
        "difference; unclear where 0 is inside, or with one problem or where all differ alike.",
        f"By {mean.metric}, {verdict}.",
    ]


# --------------------------------------------------------------------------- one run over time


def evaluations_of(run: Path) -> dict[int, dict[str, Summary]]:
    """Step → summaries for every finished `eval/<step>/summary.json` of a run, by step."""
    found = {}
    for path in run.glob("eval/*/summary.json"):
        step = re.search(r"\d+$", path.parent.name)
        if step:
            found[int(step.group())] = read_summaries(path)
    if not found:
        raise UserError(f"{run}: no evaluations (eval/<step>/summary.json) of a training run")
    return dict(sorted(found.items()))


@dataclass(frozen=True)
class Milestone:
    """A step of a run that is reported, and the reason."""

    label: str
    step: int
    estimate: Estimate


def milestones(
    evaluations: dict[int, dict[str, Summary]], benchmark: str, preregistered: int | None = None
) -> list[Milestone]:
    """First, preregistered, last and best step by mean@n, each labelled.

    The best of many noisy evaluations is high by selection alone, so it is never reported alone.
    Raises `UserError` if the preregistered step was not evaluated.
    """
    scores = {
        step: summaries[benchmark].metrics[f"mean@{summaries[benchmark].n}"]
        for step, summaries in evaluations.items()
        if benchmark in summaries
    }
    best = max(scores, key=lambda step: scores[step].value)
    steps = {"first": min(scores), "last": max(scores), "best, chosen afterwards": best}
    if preregistered is not None:
        if preregistered not in scores:
            known = ", ".join(map(str, scores))
            raise UserError(f"step {preregistered} of {benchmark} was not evaluated, only {known}")
        steps = {"preregistered": preregistered} | steps
    return [Milestone(label, step, scores[step]) for label, step in steps.items()]


def milestones_table(run: Path, preregistered: int | None = None) -> Table:
    """mean@n of a run's benchmarks at its milestones, in percent."""
    evaluations = evaluations_of(run)
    names = list(dict.fromkeys(name for found in evaluations.values() for name in found))
    table = Table(title=f"{run}, mean@n in %", title_justify="left")
    for column in ("benchmark", "step", "which", "mean@n", "95% interval"):
        table.add_column(column, justify="right" if "%" in column or column == "step" else "left")
    for name in names:
        for m in milestones(evaluations, name, preregistered):
            value = number("mean@n", m.estimate.value)
            table.add_row(name, str(m.step), m.label, value, escape(interval("mean@n", m.estimate)))
    return table
