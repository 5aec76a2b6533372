"""Several sources as one cleaned training set: reproducible, cached and stamped with its hash."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bandpo.data import overlap
from bandpo.data.benchmarks import content_sha256
from bandpo.data.cleaning import Filter, settings
from bandpo.data.conversations import as_column
from bandpo.data.sources import distinct, load_problems, parse_source
from bandpo.disk.cache import cache_dir, made_aside
from bandpo.errors import UserError
from bandpo.types import Problem

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Step:
    """One step of cleaning: rows before and after."""

    name: str
    before: int
    after: int


@dataclass(frozen=True)
class Dataset:
    """A built training set: `train.jsonl` and `dataset.json` in its folder."""

    folder: Path
    problems: list[Problem]
    sources: list[dict[str, Any]]
    steps: list[Step]
    sha256: str


def composite(
    sources: Sequence[Any],
    cleaning: Sequence[Filter] = (),
    name: str = "composite",
    folder: str | None = None,
) -> list[Problem]:
    """The problems of several sources after cleaning, for `data.train` of a configuration.

    `sources` are files, hub ids or their mappings; `cleaning` is applied in order. The result is
    cached by content and settings, under `folder` or the cache of bandpo; the rows before and
    after each step are logged. Raises `UserError` if a source cannot be read or nothing is left.
    """
    dataset = build(sources, cleaning, name, folder)
    for step in dataset.steps:
        logger.info("%s: %s: %d → %d rows", name, step.name, step.before, step.after)
    logger.info("%s: content sha256 %s, in %s", name, dataset.sha256, dataset.folder)
    return dataset.problems


def build(
    sources: Sequence[Any],
    cleaning: Sequence[Filter] = (),
    name: str = "composite",
    folder: str | None = None,
) -> Dataset:
    """As `composite`, with the sources, steps and hash of the result."""
    names = distinct([parse_source(spec).name for spec in sources])
    loaded = list(zip(names, map(load_problems, sources), strict=True))
    described = [
        {"source": source, "rows": len(problems), "sha256": content_sha256(problems)}
        for source, problems in loaded
    ]
    recipe = {
        "sources": described,
        "cleaning": [settings(step) for step in cleaning],
        # Ids and further columns are part of the result, and so is the code of the filters.
        "input": _digest(repr([problems for _, problems in loaded])),
        "code": _digest(
            inspect.getsource(sys.modules[Filter.__module__]) + inspect.getsource(overlap)
        ),
    }
    key = _digest(json.dumps(recipe, sort_keys=True, default=str))[:12]
    place = (Path(folder) if folder else cache_dir() / "data") / f"{name}-{key}"
    if not place.is_dir():
        _make(place, loaded, cleaning, recipe)
    return read(place)


def read(place: Path) -> Dataset:
    """A dataset that was built; raises `UserError` if its files are missing or were changed."""
    problems = load_problems(place / "train.jsonl")
    try:
        stamp = json.loads((place / "dataset.json").read_text(encoding="utf-8"))
        steps = [Step(**step) for step in stamp["steps"]]
        sources, sha256 = stamp["sources"], stamp["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{place}: no dataset.json of `bandpo data build`: {error}") from error
    if content_sha256(problems) != sha256:
        raise UserError(f"{place}/train.jsonl was changed after it was built; delete the folder")
    return Dataset(place, problems, sources, steps, sha256)


def _make(
    place: Path,
    loaded: Sequence[tuple[str, list[Problem]]],
    cleaning: Sequence[Filter],
    recipe: dict[str, Any],
) -> None:
    problems = [
        dataclasses.replace(p, id=f"{source}/{p.id}") for source, rows in loaded for p in rows
    ]
    steps = []
    for step in cleaning:
        kept = step(problems)
        steps.append(Step(type(step).__name__, len(problems), len(kept)))
        problems = kept
    if not problems:
        taken = ", ".join(f"{step.name} {step.before} → {step.after}" for step in steps)
        raise UserError(f"{place.name}: cleaning left no rows: {taken}")
    _warn_of_lost_sources(place.name, loaded, problems)
    stamp = recipe | {
        "steps": [dataclasses.asdict(step) for step in steps],
        "rows": len(problems),
        "sha256": content_sha256(problems),
    }
    with made_aside(place) as aside:
        _write(aside, problems, stamp)
        read(aside)  # published only if it can be read again


def _write(folder: Path, problems: Sequence[Problem], stamp: dict[str, Any]) -> None:
    with (folder / "train.jsonl").open("w", encoding="utf-8") as file:
        for p in problems:
            row = {"id": p.id, "problem": as_column(p), "answer": p.answer, "source": p.source}
            file.write(json.dumps({**p.meta, **row}, ensure_ascii=False) + "\n")
    text = json.dumps(stamp, indent=2, default=str) + "\n"
    (folder / "dataset.json").write_text(text, encoding="utf-8")


def _warn_of_lost_sources(
    name: str, loaded: Sequence[tuple[str, list[Problem]]], kept: Sequence[Problem]
) -> None:
    for source, rows in loaded:
        if rows and not any(p.id.startswith(f"{source}/") for p in kept):
            logger.warning("%s: cleaning left none of the %d rows of %s", name, len(rows), source)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()
