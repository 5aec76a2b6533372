"""`bandpo compare`: two evaluations over the same problems, or one run's evaluations over time."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from bandpo.evaluation.comparison import (
    compare_folders,
    differences_table,
    milestones_table,
    reading,
)


def main(argv: Sequence[str]) -> int:
    """`bandpo compare A B [--force]` or `bandpo compare RUN [--step N]`."""
    parser = argparse.ArgumentParser(prog="bandpo compare", description=__doc__)
    parser.add_argument("a", type=Path, help="folder with summary.json, or a training run")
    parser.add_argument("b", type=Path, nargs="?", help="the evaluation to compare it with")
    parser.add_argument("--force", action="store_true", help="compare although settings differ")
    parser.add_argument("--step", type=int, help="the preregistered step of a training run")
    arguments = parser.parse_args(list(argv))
    console = Console()
    if arguments.b is None:
        console.print(milestones_table(arguments.a, arguments.step))
        return 0
    for name, rows in compare_folders(arguments.a, arguments.b, arguments.force).items():
        console.print(differences_table(name, rows))
        for line in reading(arguments.a, arguments.b, rows):
            console.print(line, highlight=False, markup=False)
    return 0
