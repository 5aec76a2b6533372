"""The results of an evaluation: metrics with intervals, results by problem, and all settings."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bandpo.disk.whole import write_atomically
from bandpo.errors import UserError, did_you_mean
from bandpo.evaluation import metrics
from bandpo.evaluation.intervals import Estimate, mean_of
from bandpo.evaluation.measures.consensus import Equal, votes_by_equality, votes_by_string
from bandpo.evaluation.measures.standard_error import StandardError, standard_error
from bandpo.evaluation.metrics import powers_of_two
from bandpo.evaluation.samples import Sample
from bandpo.reward.score import VERDICTS

THRESHOLDS = (0.5, 0.75, 1.0)
"""The τ of G-Pass@k_τ that are reported."""
LOGGED = ("mean", "pass", "best", "maj")
"""The accuracies that a training run logs."""


@dataclass(frozen=True)
class ProblemResult:
    """The samples of one problem in numbers.

    `statuses` counts their verdicts; `marks` has a 1 for each right sample and a 0 for the others,
    in their order; `consensus` is cons@n, None where votes were not grouped by equality. Summaries
    of earlier versions lack the last two.
    """

    id: str
    answer: str
    n: int
    correct: int
    majority: float
    mean_tokens: float
    truncated: int
    statuses: Mapping[str, int]
    marks: str = ""
    consensus: float | None = None


@dataclass(frozen=True)
class Summary:
    """One benchmark's result; `metrics` are means over problems with 95% intervals.

    Names: mean@n, avg@k, pass@k, best@k, g-pass@k_τ, mg-pass@k, maj@n and cons@k as
    `bandpo.evaluation.metrics` defines them, cons@k being maj@k with votes grouped by the
    verifier's equality; length/mean in tokens; length/truncated_frac, the share of samples cut off
    by the limit; and for each verdict <verdict>_frac, the share of samples with it: these add up
    to 1. `protocol` has the name, source and deviations of the preset, if one was named.
    """

    benchmark: str
    settings: Mapping[str, Any]
    metrics: Mapping[str, Estimate]
    problems: Sequence[ProblemResult]
    warnings: Sequence[str] = ()
    standard_error: StandardError = field(default_factory=StandardError)
    protocol: Mapping[str, Any] = field(default_factory=dict)

    @property
    def n(self) -> int:
        """Samples per problem."""
        return int(self.settings["n"])

    def scalars(self) -> dict[str, float]:
        """`eval/<benchmark>/<metric>` → value, as metrics.jsonl and the trackers log it."""
        return {
            f"eval/{self.benchmark}/{name}": e.value
            for name, e in self.metrics.items()
            if "@" not in name or name.partition("@")[0] in LOGGED
        }


def summarize(
    benchmark: str,
    settings: Mapping[str, Any],
    groups: Sequence[Sequence[Sample]],
    warnings: Iterable[str] = (),
    equal: Equal | None = None,
    protocol: Mapping[str, Any] | None = None,
) -> Summary:
    """The summary of all groups of a benchmark, n samples each, in the order of its problems.

    `equal` compares answers for cons@k, which is missing without it.
    """
    n = len(groups[0])
    correct = np.array([[sample.correct for sample in group] for group in groups])
    majority = metrics.majority_per_problem(correct, n, votes_by_string(groups))
    per_problem = _accuracies(correct) | {f"maj@{n}": majority}
    if equal:
        votes = votes_by_equality(groups, equal)
        per_problem |= {
            f"cons@{k}": metrics.majority_per_problem(correct, k, votes) for k in powers_of_two(n)
        }
    agreed = per_problem[f"cons@{n}"].tolist() if equal else [None] * len(groups)
    results = [
        ProblemResult(
            id=group[0].problem_id,
            answer=group[0].answer,
            n=n,
            correct=sum(sample.correct for sample in group),
            majority=float(share),
            mean_tokens=sum(sample.tokens for sample in group) / n,
            truncated=sum(sample.truncated for sample in group),
            statuses=dict(sorted(Counter(sample.verdict for sample in group).items())),
            marks="".join("1" if sample.correct else "0" for sample in group),
            consensus=consensus,
        )
        for group, share, consensus in zip(groups, majority, agreed, strict=True)
    ]
    per_problem |= {"length/mean": np.array([result.mean_tokens for result in results])}
    per_problem |= {"length/truncated_frac": np.array([r.truncated / n for r in results])}
    per_problem |= {
        f"{verdict}_frac": np.array([r.statuses.get(verdict, 0) / n for r in results])
        for verdict in VERDICTS
    }
    unreadable = [result.id for result in results if result.statuses.get("bad_gold")]
    found = [f"reference answer unreadable to the verifier: {', '.join(unreadable)}"]
    return Summary(
        benchmark=benchmark,
        settings=settings,
        metrics={name: _estimate(name, values) for name, values in per_problem.items()},
        problems=results,
        warnings=[*warnings, *(found if unreadable else [])],
        standard_error=standard_error(correct),
        protocol=protocol or {},
    )


def logged_metrics(benchmark: str, n: int) -> list[str]:
    """The names under which a run logs a benchmark with n samples per problem."""
    nothing = [Sample("", i, "no_answer", None, "", 0, False, 0, "", "") for i in range(n)]
    return list(summarize(benchmark, {"n": n}, [nothing]).scalars())


def require_logged(key: str, metric: str | None, benchmarks: Sequence[str], n: int) -> None:
    """Raises UserError for a metric of evaluations that these benchmarks do not log."""
    if metric is None or not metric.startswith("eval/"):
        return
    known = [name for benchmark in benchmarks for name in logged_metrics(benchmark, n)]
    if metric not in known:
        shown = ", ".join(f"eval/{name}/mean@{n}" for name in benchmarks) or "no benchmark"
        raise UserError(
            f"{key}={metric} is not measured{did_you_mean(metric, known)} "
            f"(eval.benchmarks and eval.n give {shown}, and pass@k, best@k, maj@{n})"
        )


def _accuracies(correct: metrics.Marks) -> dict[str, metrics.Values]:
    """Every metric that follows from the marks alone, by problem."""
    n = correct.shape[1]
    ks = powers_of_two(n)
    found = {f"mean@{n}": metrics.mean_per_problem(correct, n)}
    found |= {f"avg@{k}": metrics.average_per_problem(correct, k) for k in ks}
    found |= {f"pass@{k}": metrics.pass_per_problem(correct, k) for k in ks}
    found |= {f"best@{k}": metrics.best_per_problem(correct, k) for k in ks}
    for k in ks[1:]:
        found |= {
            f"g-pass@{k}_{threshold}": metrics.stable_pass_per_problem(correct, k, threshold)
            for threshold in THRESHOLDS
        }
        found[f"mg-pass@{k}"] = metrics.mean_stable_pass_per_problem(correct, k)
    return found


def _estimate(name: str, values: metrics.Values) -> Estimate:
    mean = mean_of(values)
    return mean.interval if name == "length/mean" else mean.share


def per_problem_values(summary: Summary, metric: str) -> dict[str, float]:
    """Problem id → the term of a metric, for paired comparisons.

    Of maj and cons only those of n samples, and none of avg@k. Raises KeyError for others.
    """
    kind, k = metric.split("@")
    if kind == "maj":
        return {result.id: result.majority for result in summary.problems}
    if kind == "cons":
        return {r.id: r.consensus for r in summary.problems if r.consensus is not None}
    estimators = {
        "mean": metrics.mean_per_problem,
        "pass": metrics.pass_per_problem,
        "best": metrics.best_per_problem,
        "mg-pass": metrics.mean_stable_pass_per_problem,
    }
    counts = [result.correct for result in summary.problems]
    table = np.arange(summary.n) < np.array(counts)[:, None]
    values = estimators[kind](table, int(k)).tolist()
    return {result.id: value for result, value in zip(summary.problems, values, strict=True)}


def write_summaries(folder: Path, summaries: Sequence[Summary]) -> Path:
    """Writes `summary.json` of an evaluation folder in one piece."""
    path = folder / "summary.json"
    content = {summary.benchmark: dataclasses.asdict(summary) for summary in summaries}
    write_atomically(path, json.dumps(content, indent=2) + "\n")
    return path


def _read(entry: Mapping[str, float | None]) -> Estimate:
    """An estimate of summary.json; earlier versions wrote zero width for unknown intervals."""
    estimate = Estimate(**entry)  # type: ignore[arg-type]
    return estimate if estimate.half else Estimate(estimate.value)


def read_summaries(place: Path) -> dict[str, Summary]:
    """Benchmark → summary from `summary.json` or its folder; raises `UserError` without one."""
    path = place / "summary.json" if place.is_dir() else place
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {
            name: Summary(
                benchmark=name,
                settings=entry["settings"],
                metrics={key: _read(value) for key, value in entry["metrics"].items()},
                problems=[ProblemResult(**problem) for problem in entry["problems"]],
                warnings=entry["warnings"],
                standard_error=StandardError(**entry.get("standard_error", {})),
                protocol=entry.get("protocol", {}),
            )
            for name, entry in content.items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path}: no summary of an evaluation: {error}") from error
