"""`bandpo data check | overlap | build | show`: what is in a dataset, and how a model sees it."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from rich.console import Console

from bandpo.commands.data import show
from bandpo.config.composition import compose
from bandpo.config.sections.data import DataConfig
from bandpo.data.audit import audit, contamination
from bandpo.data.benchmarks import content_sha256, registered
from bandpo.data.sources import GeneratedSource, load_problems, parse_source, with_columns
from bandpo.data.suggestions import suggestions
from bandpo.disk.space import require_folder
from bandpo.errors import UserError

LISTS = ("words", "columns", "benchmarks", "overrides")
"""The arguments of subcommands that take any number of words."""


def main(argv: Sequence[str]) -> int:
    """Runs one of the subcommands."""
    parser = argparse.ArgumentParser(prog="bandpo data", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    place = "a benchmark's name, a file or folder, a hub id, or a YAML mapping"

    checked = commands.add_parser("check", help="rows, hash, duplicates, unreadable answers")
    checked.add_argument("source", help=place)
    checked.add_argument("--root", type=Path, help="folder with local copies of benchmarks")
    checked.add_argument("--fast", action="store_true", help="without the verifier")
    checked.add_argument("columns", nargs="*", help="overrides such as data.columns.answer=gold")
    checked.set_defaults(run=_check)

    overlapping = commands.add_parser(
        "overlap", help="contamination: training problems that occur in a benchmark"
    )
    overlapping.add_argument("train", help=place)
    several = f"{place}; all or math; a .txt file with one of these per line"
    overlapping.add_argument("benchmarks", nargs="+", help=several)
    overlapping.add_argument("--root", type=Path, help="folder with local copies of benchmarks")
    overlapping.add_argument("--n", type=int, default=10, help="tokens of an n-gram")
    overlapping.add_argument("--threshold", type=float, default=0.5, help="least share of n-grams")
    overlapping.add_argument("--out", type=Path, help="JSONL file for every overlapping row")
    overlapping.set_defaults(run=_overlap)

    built = commands.add_parser("build", help="load and clean data.train of a train configuration")
    built.add_argument("overrides", nargs="*", help="hydra overrides, such as data=dapo_math")
    built.set_defaults(run=_build)

    show.add_to(commands)

    arguments, rest = parser.parse_known_args(list(argv))
    if unknown := [word for word in rest if word.startswith("-")]:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    # argparse fills a list from words that stand together, not from those after an option.
    filled = next(name for name in LISTS if name in arguments)
    setattr(arguments, filled, [*getattr(arguments, filled), *rest])
    return int(arguments.run(arguments))


def _check(arguments: argparse.Namespace) -> bool:
    """Prints an audit of the source; whether there is something to fix.

    Raises `UserError` with the overrides that would read a source which cannot be read as it is.
    """
    spec = _spec(arguments.source)
    if arguments.columns:
        spec = with_columns(spec, _columns(arguments.columns))
    try:
        result = audit(spec, arguments.root, verify=not arguments.fast)
    except UserError as error:
        raise UserError(f"{error}{_ways(spec)}") from error
    first, *rest = result.lines()
    print(f"{arguments.source}: {first}", *rest, sep="\n")
    return not result.is_clean


def _overlap(arguments: argparse.Namespace) -> bool:
    """Prints which problems of each benchmark a training set contains; whether it has any."""
    benchmarks = [_spec(text) for text in arguments.benchmarks]
    found = contamination(
        _spec(arguments.train), benchmarks, arguments.root, arguments.n, arguments.threshold
    )
    console = Console()
    console.print(found.table())
    for line in found.examples():
        console.print(line, markup=False, highlight=False, no_wrap=True, overflow="ellipsis")
    if arguments.out:
        require_folder(arguments.out.parent, "--out in ")
        rows = "".join(json.dumps(dataclasses.asdict(o)) + "\n" for o in found.overlaps)
        arguments.out.write_text(rows, encoding="utf-8")
    return bool(found.overlaps)


def _columns(overrides: Sequence[str]) -> dict[str, Any]:
    """The columns that overrides name; raises `UserError` for other overrides."""
    others = [text for text in overrides if not text.startswith("data.columns.")]
    if others:
        raise UserError(f"{others[0]}: check takes data.columns.<role>=<column>")
    named = compose("train", ["data.train=unread", *overrides], _TrainingData)
    return named.data.columns.named()


def _ways(spec: Any) -> str:
    """The overrides that would read a source, as lines for an error; empty without any."""
    if isinstance(spec, str) and spec in registered():
        return ""
    source = parse_source(spec)
    found = [] if isinstance(source, GeneratedSource) else suggestions(source)
    lines = "".join(f"\n  {suggestion}" for suggestion in found if suggestion.overrides)
    return f"\nThese overrides read it:{lines}" if lines else ""


class _TrainingData(BaseModel):
    """The section of a train configuration that says what to train on."""

    data: DataConfig


def _build(arguments: argparse.Namespace) -> bool:
    """Makes the training data of a configuration, as `bandpo train` would, and describes it."""
    config = compose("train", arguments.overrides, _TrainingData)
    problems = load_problems(config.data.train, config.data.columns.named())
    print(f"{len(problems)} problems, content sha256 {content_sha256(problems)}")
    return False


def _spec(text: str) -> Any:
    """A data source from the command line: a mapping, or its short form."""
    return yaml.safe_load(text) if text.startswith("{") else text
