"""`bandpo replay`: the tokens that a run recorded, under every method."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from bandpo.disk.space import require_folder
from bandpo.methods.method import ALL, load_methods
from bandpo.methods.records import count_tokens, find_dumps
from bandpo.methods.replay import replay
from bandpo.methods.replay_report import tables, write


def main(argv: Sequence[str]) -> int:
    """Prints tables; writes replay.json and replay.png."""
    parser = argparse.ArgumentParser(prog="bandpo replay", description=__doc__)
    parser.add_argument(
        "paths", nargs="+", type=Path, help="runs with trainer.dump_tokens_every, or token files"
    )
    parser.add_argument(
        "--methods", default=ALL, help="such as grpo,band_kl:delta=0.03; all (the default)"
    )
    parser.add_argument("--configs", type=Path, help="folder with methods of your own in method/")
    parser.add_argument("--out", type=Path, help="folder of the results; replay/ beside the input")
    arguments = parser.parse_args(list(argv))
    # Each method takes a core; OpenMP would compete for them.
    torch.set_num_threads(1)

    methods = load_methods(arguments.methods, arguments.configs)
    files = find_dumps(arguments.paths)
    first = arguments.paths[0]
    out = arguments.out or (first if first.is_dir() else first.parent) / "replay"
    require_folder(out, "--out ")
    with _progress(sum(map(count_tokens, files))) as on_progress:
        replayed = replay(files, methods, on_progress)
    # Files first: they are written even where the tables go through `head`.
    written = write(replayed, out)
    console = Console()
    for table in tables(replayed):
        console.print(table)
    console.print(f"written to {' and '.join(map(str, written))}", highlight=False)
    return 0


@contextmanager
def _progress(tokens: int) -> Iterator[Any]:
    console = Console(stderr=True)
    columns = (TextColumn("replaying"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=tokens)
        yield lambda done: progress.advance(task, done)
