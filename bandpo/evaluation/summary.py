"""The results of an evaluation: metrics with intervals, results by problem, and all settings."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bandpo.disk.whole import write_atomically
from bandpo.errors import UserError
from bandpo.evaluation import metrics
from bandpo.evaluation.intervals import Estimate, mean_of
from bandpo.evaluation.metrics import powers_of_two
from bandpo.evaluation.samples import Sample
from bandpo.reward.score import VERDICTS


@dataclass(frozen=True)
class ProblemResult:
    """The samples of one problem in numbers; `statuses` counts their verdicts."""

    id: str
    answer: str
    n: int
    correct: int
    majority: float
    mean_tokens: float
    truncated: int
    statuses: Mapping[str, int]


@dataclass(frozen=True)
class Summary:
    """One benchmark's result; `metrics` are means over problems with 95% intervals.

    Names: mean@n, pass@k, best@k and maj@n as `bandpo.evaluation.metrics` defines them;
    length/mean in tokens; length/truncated_frac, the share of samples cut off by the limit; and
    for each verdict <verdict>_frac, the share of samples with it: these add up to 1.
    """

    benchmark: str
    settings: Mapping[str, Any]
    metrics: Mapping[str, Estimate]
    problems: Sequence[ProblemResult]
    warnings: Sequence[str] = ()

    @property
    def n(self) -> int:
        """Samples per problem."""
        return int(self.settings["n"])

    def scalars(self) -> dict[str, float]:
        """`eval/<benchmark>/<metric>` → value, as metrics.jsonl and the trackers log it."""
        return {f"eval/{self.benchmark}/{name}": e.value for name, e in self.metrics.items()}


def summarize(
    benchmark: str,
    settings: Mapping[str, Any],
    groups: Sequence[Sequence[Sample]],
    warnings: Iterable[str] = (),
) -> Summary:
    """The summary of all groups of a benchmark, n samples each, in the order of its problems."""
    n = len(groups[0])
    correct = np.array([[sample.correct for sample in group] for group in groups])
    votes = [[_vote(sample) for sample in group] for group in groups]
    majority = metrics.majority_per_problem(correct, n, votes)
    per_problem = {f"mean@{n}": metrics.mean_per_problem(correct, n)}
    per_problem |= {f"pass@{k}": metrics.pass_per_problem(correct, k) for k in powers_of_two(n)}
    per_problem |= {f"best@{k}": metrics.best_per_problem(correct, k) for k in powers_of_two(n)}
    per_problem |= {f"maj@{n}": majority}
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
        )
        for group, share in zip(groups, majority, strict=True)
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
    )


def _vote(sample: Sample) -> str | None:
    """A sample's answer, for the majority; None abstains.

    Answers are equal as strings once white space is gone: the verifier compares only with the
    reference. Where a reward extracts no answers (a function), all wrong samples count as one.
    """
    answer = "".join((sample.extracted or "").split())
    return answer if answer or sample.status == "wrong" else None


def _estimate(name: str, values: metrics.Values) -> Estimate:
    mean = mean_of(values)
    return mean.interval if name == "length/mean" else mean.share


def per_problem_values(summary: Summary, metric: str) -> dict[str, float]:
    """Problem id → the term of mean@k, pass@k, best@k or maj@n, for paired comparisons."""
    kind, k = metric.split("@")
    if kind == "maj":
        return {result.id: result.majority for result in summary.problems}
    estimators = {
        "mean": metrics.mean_per_problem,
        "pass": metrics.pass_per_problem,
        "best": metrics.best_per_problem,
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
            )
            for name, entry in content.items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path}: no summary of an evaluation: {error}") from error
