"""Whether a dataset may be trained on: what is odd about its rows, and which are contaminated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from bandpo.data.benchmarks import content_sha256, expanded, load_benchmark, registered
from bandpo.data.cleaning import Deduplicate, DropConflicts, DropControlCharacters, EnglishOnly
from bandpo.data.overlap import BenchmarkIndex, Overlap
from bandpo.data.sources import load_problems
from bandpo.types import Problem

LISTED = 20
ODDITIES: dict[str, Callable[[Sequence[Problem]], list[Problem]]] = {
    "rows of problems with conflicting answers": DropConflicts(),
    "repeated problems": Deduplicate(),
    "rows with control characters": DropControlCharacters(),
    "rows in another script than Latin or Greek": EnglishOnly(),
}
UNREADABLE = "answers the verifier cannot read"


@dataclass(frozen=True)
class Audit:
    """The problems of a dataset, warnings about it, and the rows with each kind of oddity."""

    problems: Sequence[Problem]
    warnings: Sequence[str]
    oddities: Mapping[str, Sequence[str]]

    @property
    def is_clean(self) -> bool:
        """Whether there is nothing to fix."""
        return not (self.warnings or any(self.oddities.values()))

    def lines(self) -> Iterator[str]:
        """The result in words, at most 20 rows of each kind."""
        integers = sum(p.answer.lstrip("+-").isdecimal() for p in self.problems)
        yield f"{len(self.problems)} problems, {integers} with integer answers"
        yield f"content sha256 {content_sha256(self.problems)}"
        yield from (f"! {warning}" for warning in self.warnings)
        for name, rows in self.oddities.items():
            if rows:
                shown = [*rows[:LISTED], *(["…"] if len(rows) > LISTED else [])]
                yield "\n    ".join([f"! {len(rows)} {name}:", *shown])


def audit(source: Any, root: Path | None = None, verify: bool = True) -> Audit:
    """Examines a benchmark or any data source; `verify` has the verifier read every answer."""
    problems, warnings = _load(source, root)
    oddities = {name: _ids_removed(step, problems) for name, step in ODDITIES.items()}
    if verify:
        from bandpo.reward import bad_golds  # slow to import

        unreadable = bad_golds(problems)
        oddities[UNREADABLE] = [f"{problem.id}: {reason}" for problem, reason in unreadable]
    return Audit(problems, warnings, oddities)


@dataclass(frozen=True)
class Contamination:
    """The training problems that occur in benchmarks; `sizes` are the benchmarks' problems."""

    train: Sequence[Problem]
    sizes: Mapping[str, int]
    overlaps: Sequence[Overlap]

    def table(self) -> Table:
        """For each benchmark how many of its problems the training set contains, and how often."""
        title = f"{len(self.overlaps)} of {len(self.train)} training problems occur in a benchmark"
        table = Table(title=title, title_justify="left")
        for column in ("benchmark", "problems", "contained", "by rows", "equal text"):
            table.add_column(column, justify="left" if column == "benchmark" else "right")
        for name, size in self.sizes.items():
            found = [overlap for overlap in self.overlaps if overlap.benchmark == name]
            contained = len({overlap.problem_id for overlap in found})
            equal = sum(overlap.equal for overlap in found)
            table.add_row(name, str(size), str(contained), str(len(found)), str(equal))
        return table

    def examples(self) -> Iterator[str]:
        """The 20 training problems that share most with a benchmark, one per line."""
        texts = {problem.id: " ".join(problem.problem.split()) for problem in self.train}
        for o in sorted(self.overlaps, key=lambda o: (-o.share, o.train_id))[:LISTED]:
            source = f"{o.train_id}: {texts[o.train_id]}"
            yield f"{o.share:4.0%}  {o.benchmark} {o.problem_id} ← {source}"


def contamination(
    train: Any,
    benchmarks: Sequence[Any],
    root: Path | None = None,
    n: int = 10,
    threshold: float = 0.5,
) -> Contamination:
    """Compares a training source with benchmarks and groups of them.

    `BenchmarkIndex` says what n and threshold are.
    """
    problems, _ = _load(train, root)
    index = BenchmarkIndex(n, threshold)
    sizes = {}
    for spec in expanded(benchmarks):
        benchmark = load_benchmark(spec, root)
        index.add(benchmark.name, benchmark.problems)
        sizes[benchmark.name] = len(benchmark.problems)
    return Contamination(problems, sizes, index.overlaps(problems))


def _load(spec: Any, root: Path | None) -> tuple[Sequence[Problem], Sequence[str]]:
    """Problems and warnings of a benchmark or of any source."""
    if isinstance(spec, str) and spec in registered():
        benchmark = load_benchmark(spec, root)
        return benchmark.problems, benchmark.warnings
    return load_problems(spec), ()


def _ids_removed(
    step: Callable[[Sequence[Problem]], list[Problem]], problems: Sequence[Problem]
) -> list[str]:
    kept = {problem.id for problem in step(problems)}
    return [problem.id for problem in problems if problem.id not in kept]
