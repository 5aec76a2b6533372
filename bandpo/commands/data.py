"""`bandpo data check | overlap | build`: what is in a dataset, and whether it may be trained on."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from bandpo.config.composition import compose
from bandpo.config.schema import DataConfig
from bandpo.data.benchmarks import content_sha256, load_benchmark, registered
from bandpo.data.cleaning import Deduplicate, DropConflicts, DropControlCharacters, EnglishOnly
from bandpo.data.overlap import BenchmarkIndex, Overlap
from bandpo.data.sources import load_problems
from bandpo.types import Problem

LISTED = 20


def main(argv: Sequence[str]) -> int:
    """Runs one of the three subcommands."""
    parser = argparse.ArgumentParser(prog="bandpo data", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    place = "a benchmark's name, a JSONL/parquet/CSV file, a hub id, or a YAML mapping"

    checked = commands.add_parser("check", help="rows, hash, duplicates, unreadable answers")
    checked.add_argument("source", help=place)
    checked.add_argument("--root", type=Path, help="folder with local copies of benchmarks")
    checked.add_argument("--fast", action="store_true", help="do not ask the verifier")
    checked.set_defaults(run=check)

    overlapping = commands.add_parser("overlap", help="training rows that give a benchmark away")
    overlapping.add_argument("train", help=place)
    overlapping.add_argument("benchmarks", nargs="+", help=place)
    overlapping.add_argument("--root", type=Path, help="folder with local copies of benchmarks")
    overlapping.add_argument("--n", type=int, default=10, help="tokens of an n-gram")
    overlapping.add_argument("--threshold", type=float, default=0.5, help="least share of n-grams")
    overlapping.add_argument("--out", type=Path, help="JSONL file for every overlapping row")
    overlapping.set_defaults(run=overlap)

    built = commands.add_parser("build", help="load and clean data.train of a train configuration")
    built.add_argument("overrides", nargs="*", help="hydra overrides, such as data=dapo_math")
    built.set_defaults(run=build)

    arguments = parser.parse_args(list(argv))
    return int(arguments.run(arguments))


def check(arguments: argparse.Namespace) -> int:
    """Prints what a dataset is and what is odd about it; 1 if there is something to mend."""
    problems, warnings = _load(arguments.source, arguments.root)
    findings = {name: _ids_removed(step, problems) for name, step in ODDITIES.items()}
    if not arguments.fast:
        from bandpo.reward import bad_golds

        findings["answers the verifier cannot read"] = [
            f"{problem.id}: {reason}" for problem, reason in bad_golds(problems)
        ]
    integers = sum(p.answer.lstrip("+-").isdecimal() for p in problems)
    print(f"{arguments.source}: {len(problems)} problems, {integers} with integer answers")
    print(f"content sha256 {content_sha256(problems)}")
    for line in warnings:
        print(f"! {line}")
    for name, found in findings.items():
        if found:
            shown = [*found[:LISTED], *(["…"] if len(found) > LISTED else [])]
            print(f"! {len(found)} {name}:", *shown, sep="\n    ")
    return int(bool(warnings or any(findings.values())))


ODDITIES: dict[str, Callable[[Sequence[Problem]], list[Problem]]] = {
    "rows of problems with conflicting answers": DropConflicts(),
    "repeated problems": Deduplicate(),
    "rows with control characters": DropControlCharacters(),
    "rows in another script than Latin or Greek": EnglishOnly(),
}


def overlap(arguments: argparse.Namespace) -> int:
    """Prints how many problems of each benchmark a training set gives away; 1 if any."""
    train, _ = _load(arguments.train, arguments.root)
    index = BenchmarkIndex(arguments.n, arguments.threshold)
    sizes = {}
    for spec in arguments.benchmarks:
        benchmark = load_benchmark(_spelled(spec), arguments.root)
        index.add(benchmark.name, benchmark.problems)
        sizes[benchmark.name] = len(benchmark.problems)
    found = index.overlaps(train)
    console = Console()
    console.print(_overlap_table(sizes, found, len(train)))
    texts = {problem.id: " ".join(problem.problem.split()) for problem in train}
    for o in sorted(found, key=lambda o: (-o.share, o.train_id))[:LISTED]:
        line = f"{o.share:4.0%}  {o.benchmark} {o.problem_id} ← {o.train_id}: {texts[o.train_id]}"
        console.print(line, markup=False, highlight=False, no_wrap=True, overflow="ellipsis")
    if arguments.out:
        rows = "".join(json.dumps(dataclasses.asdict(o)) + "\n" for o in found)
        arguments.out.write_text(rows, encoding="utf-8")
    return int(bool(found))


def _overlap_table(sizes: dict[str, int], found: Sequence[Overlap], rows: int) -> Table:
    table = Table(title=f"{len(found)} of {rows} training rows overlap", title_justify="left")
    for column in ("benchmark", "problems", "given away", "by rows", "equal text"):
        table.add_column(column, justify="left" if column == "benchmark" else "right")
    for name, size in sizes.items():
        mine = [o for o in found if o.benchmark == name]
        given_away = len({o.problem_id for o in mine})
        equal = sum(o.equal for o in mine)
        table.add_row(name, str(size), str(given_away), str(len(mine)), str(equal))
    return table


class TrainingData(BaseModel):
    """Of a train configuration the section that says what to train on."""

    data: DataConfig


def build(arguments: argparse.Namespace) -> int:
    """Makes the training data of a configuration, as `bandpo train` would, and says what it is."""
    config = compose("train", arguments.overrides, TrainingData)
    problems = load_problems(config.data.train)
    print(f"{len(problems)} problems, content sha256 {content_sha256(problems)}")
    return 0


def _spelled(text: str) -> Any:
    return yaml.safe_load(text) if text.startswith("{") else text


def _load(text: str, root: Path | None) -> tuple[list[Problem], list[str]]:
    """Problems and warnings of a benchmark or of any source."""
    if text in registered():
        benchmark = load_benchmark(text, root)
        return list(benchmark.problems), list(benchmark.warnings)
    return load_problems(_spelled(text)), []


def _ids_removed(
    step: Callable[[Sequence[Problem]], list[Problem]], problems: Sequence[Problem]
) -> list[str]:
    kept = {problem.id for problem in step(problems)}
    return [problem.id for problem in problems if problem.id not in kept]
