"""The recorded tokens of a run under every method, by old probability and advantage."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bandpo.cpu import usable_cores
from bandpo.errors import UserError
from bandpo.loss import LossDiagnostics, TokenBatch, TokenRatio
from bandpo.loss.diagnostics import BINS, EDGES, SIGNS, cell_index
from bandpo.loss.statistic import Statistic, merged
from bandpo.methods.method import Method
from bandpo.methods.records import CHUNK, read_updates


@dataclass
class MethodReplay:
    """One method's sums over the tokens replayed so far; `gradient` is [bins, signs, 3].

    The three are Σ r·|A| with the token's own ratio r (unclipped, the same for all methods),
    Σ |∂objective/∂log π|, and the part of it that points against the advantage.
    """

    method: Method
    diagnostics: LossDiagnostics = field(default_factory=LossDiagnostics)
    gradient: Tensor = field(
        default_factory=lambda: torch.zeros(len(BINS), len(SIGNS), 3, dtype=torch.float64)
    )

    def update(
        self, batch: TokenBatch, cell: Tensor, unclipped: Tensor, whole: Sequence[Statistic]
    ) -> None:
        """Adds a batch whose tokens fall into the cells [B, T] and have r·|A| [B, T].

        `whole` are the method's statistics of its optimizer batch. Raises ValueError, and adds
        nothing, where the batch lacks what the method reads.
        """
        output, gradient = self.method.judge(batch, whole)
        self.diagnostics.update(output)
        mass = gradient.abs()  # 0 where masked
        against = mass * (gradient.sign() == -batch.advantages.sign())
        columns = torch.stack([unclipped, mass, against], dim=-1).double()
        self.gradient.view(-1, 3).index_add_(0, cell.flatten(), columns.view(-1, 3))

    def cells(self) -> list[dict[str, Any]]:
        """One row for each bin × sign that has tokens."""
        rows = []
        for row in self.diagnostics.table():
            sums = self.gradient[BINS.index(str(row["bin"])), SIGNS.index(str(row["advantage"]))]
            rows.append({**_clipping(row), **_shares(sums)})
        return rows

    def total(self) -> dict[str, Any]:
        """The same over all tokens, under the names of metrics.jsonl."""
        metrics = self.diagnostics.metrics()
        kept = {name: value for name, value in metrics.items() if "/bin_" not in name}
        return {**kept, **_shares(self.gradient.sum((0, 1)))}


@dataclass(frozen=True)
class Replay:
    """The result of `replay`; `skipped` gives a method's reason, inputs that the records lack."""

    files: tuple[Path, ...]
    tokens: int
    sequences: int
    methods: tuple[MethodReplay, ...]
    skipped: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values; shares without a denominator are null."""
        return {
            "files": [str(path) for path in self.files],
            "tokens": self.tokens,
            "sequences": self.sequences,
            "old_probability_bins": [0.0, *EDGES, 1.0],
            "skipped": self.skipped,
            "methods": {
                part.method.name: {
                    "note": part.method.note,
                    "total": part.total(),
                    "cells": part.cells(),
                }
                for part in self.methods
            },
        }


def replay(
    files: Sequence[Path],
    methods: Sequence[Method],
    on_progress: Callable[[int], None] = lambda tokens: None,
    chunk: int = CHUNK,
) -> Replay:
    """Runs every method over the token records of `files`, `chunk` tokens at a time.

    `on_progress` receives the number of tokens of each batch. Raises UserError for files without
    tokens, and where no method can be replayed.
    """
    wholes, skipped = _statistics(files, methods, chunk)
    parts = [MethodReplay(method) for method in methods if method.name not in skipped]
    tokens = sequences = 0
    # One core per method: a batch is too small to be split.
    with ThreadPoolExecutor(
        usable_cores(), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        for path, update, batch in _read(files, chunk):
            unclipped = TokenRatio()(batch) * batch.advantages.abs() * batch.mask
            judge = partial(_update, batch=batch, cell=cell_index(batch), unclipped=unclipped)
            known = [wholes.get((part.method.name, batch.step, update), []) for part in parts]
            for part, reason in zip(parts, pool.map(judge, parts, known), strict=True):
                if reason:
                    skipped[part.method.name] = f"{path}: {reason}"
            parts = [part for part in parts if part.method.name not in skipped]
            here = int(batch.mask.sum())
            tokens, sequences = tokens + here, sequences + len(batch.mask)
            on_progress(here)
    if tokens == 0:
        raise UserError(f"{', '.join(map(str, files))}: no tokens")
    if not parts:
        raise UserError.join("no method can be replayed:", list(skipped.values()))
    return Replay(tuple(files), tokens, sequences, tuple(parts), skipped)


def _read(files: Sequence[Path], chunk: int) -> Iterator[tuple[Path, int, TokenBatch]]:
    """The file, the update within its step and the tokens of each batch."""
    for path in files:
        for update, batch in read_updates(path, chunk):
            yield path, update, batch


def _statistics(
    files: Sequence[Path], methods: Sequence[Method], chunk: int
) -> tuple[dict[tuple[str, int, int], list[Statistic]], dict[str, str]]:
    """The statistics of each update for methods that depend on it, by method, step and update.

    Over the files of all ranks, in a pass of its own; none where no method asks. Also the reasons
    of the methods for which the records lack inputs.
    """
    asking = [method for method in methods if method.depends_on_batch]
    wholes: dict[tuple[str, int, int], list[Statistic]] = {}
    skipped: dict[str, str] = {}
    for path, update, batch in _read(files, chunk) if asking else ():
        for method in asking:
            key = method.name, batch.step, update
            try:
                found = method.statistics(batch)
            except ValueError as error:
                skipped[method.name] = f"{path}: {error}"
                continue
            wholes[key] = merged([wholes[key], found]) if key in wholes else found
        asking = [method for method in asking if method.name not in skipped]
    return wholes, skipped


def _update(
    part: MethodReplay,
    whole: Sequence[Statistic],
    batch: TokenBatch,
    cell: Tensor,
    unclipped: Tensor,
) -> str | None:
    """Updates a method; returns its message if the batch lacks inputs for it."""
    try:
        part.update(batch, cell, unclipped, whole)
    except ValueError as error:
        return str(error)
    return None


def _clipping(row: dict[str, str | float]) -> dict[str, Any]:
    """A row of the diagnostics' table, its clip rates named by the bound that clipped."""
    negative = row["advantage"] == "negative"
    high = row["binding_high"]
    return {
        "bin": row["bin"],
        "advantage": row["advantage"],
        "tokens": int(row["tokens"]),
        "clip_high_frac": 0.0 if negative else high,
        "clip_low_frac": row["binding_low"],
        "dual_clip_frac": high if negative else 0.0,
        "low_mean": row["low"],
        "high_mean": row["high"],
        "ratio_mean": row["ratio"],
        "advantage_abs_mean": row["mass"],
        "advantage_abs_removed_mean": row["mass_removed"],
        "entropy_mean": row.get("entropy"),
    }


def _shares(sums: Tensor) -> dict[str, float | None]:
    unclipped, kept, against = sums.tolist()
    if not unclipped > 0:
        return {"gradient_kept": None, "gradient_reversed": None}
    return {"gradient_kept": kept / unclipped, "gradient_reversed": against / unclipped}
