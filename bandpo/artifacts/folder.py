"""The former content of a run folder: read, cut to a step, or set aside whole."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bandpo.disk import lock
from bandpo.disk.whole import remove_partial, write_atomically
from bandpo.errors import UserError

PREVIOUS = "previous"


def holds_a_run(folder: Path) -> bool:
    """Whether a run has left metrics or checkpoints here."""
    metrics = folder / "metrics.jsonl"
    return (metrics.exists() and metrics.stat().st_size > 0) or any(
        (folder / "checkpoints").glob("step_*")
    )


def set_aside(folder: Path) -> Path:
    """Moves the folder's whole content to `previous/<number>/`, which is returned."""
    target = _next_previous(folder)
    for entry in sorted(folder.iterdir()):
        if entry.name not in (PREVIOUS, lock.NAME):
            entry.rename(target / entry.name)
    return target


def cut_after(folder: Path, step: int) -> Path | None:
    """Removes metrics, samples, tokens, evaluations and checkpoints of steps after this one.

    They are about to be written again, as is what a killed process was writing. If a checkpoint
    is among them (damaged, or the run returns to an earlier one), all of them are kept in
    `previous/<number>/`, which is returned.
    """
    remove_partial(folder)
    later = [path for path, its_step in _files_by_step(folder) if its_step > step]
    kept = _next_previous(folder) if any(p.parent.name == "checkpoints" for p in later) else None
    _cut_lines(folder / "metrics.jsonl", step, kept)
    for path in later:
        if kept is not None:
            target = kept / path.relative_to(folder)
            target.parent.mkdir(exist_ok=True)
            path.rename(target)
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    return kept


def _files_by_step(folder: Path) -> Iterator[tuple[Path, int]]:
    """Yields `samples/step_000010.jsonl`, `tokens/step_000010-rank0.parquet`, … with its step."""
    for pattern in ("samples/step_*", "tokens/step_*", "eval/*", "checkpoints/step_*"):
        for path in sorted(folder.glob(pattern)):
            number = path.name.removeprefix("step_").split("-")[0].split(".")[0]
            if number.isdecimal():
                yield path, int(number)


def _cut_lines(metrics: Path, step: int, kept: Path | None) -> None:
    if not metrics.exists():
        return
    if kept is not None:
        shutil.copy2(metrics, kept)
    written = metrics.read_text(encoding="utf-8").splitlines()
    lines = [line for line in written if _step_of(line) <= step]
    write_atomically(metrics, "".join(f"{line}\n" for line in lines))


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf  # a line cut off by a crash belongs to no step


def _next_previous(folder: Path) -> Path:
    taken = [int(p.name) for p in (folder / PREVIOUS).glob("*") if p.name.isdecimal()]
    target = folder / PREVIOUS / str(max(taken, default=0) + 1)
    target.mkdir(parents=True)
    return target


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, except a last one that a kill cut in half.

    Raises UserError where there are none.
    """
    path = folder / "metrics.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; is {folder} the folder of a run?") from None
    lines = [line for line in lines if line.endswith("\n")]
    if not lines:
        raise UserError(f"{path} is empty: the run has not finished a step")
    return [json.loads(line) for line in lines]
