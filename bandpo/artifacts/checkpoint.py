"""Checkpoints that appear complete or not at all, and are checked before they are used."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from bandpo.disk.manifest import checksums, files_below, mismatch, read_manifest, write_manifest
from bandpo.disk.whole import flush_folder, publish_folder, replacing
from bandpo.errors import UserError
from bandpo.ranks.collectives import Ranks

_NAME = re.compile(r"step_(\d{6,})")


@dataclass(frozen=True)
class Checkpoint:
    """A folder `checkpoints/step_000010` with `engine/`, `random/`, `state.json`, `config.yaml`,
    `manifest.json` and, where it was due, `hf/`."""

    folder: Path

    @property
    def step(self) -> int:
        """The step after which it was written, from its name."""
        match = _NAME.fullmatch(self.folder.name)
        return int(match[1]) if match else -1

    def state(self) -> dict[str, Any]:
        """The loop's state; raises UserError for a folder that is no checkpoint."""
        try:
            return json.loads((self.folder / "state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{self.folder} is not a complete checkpoint: {error}") from None

    def settings(self) -> dict[str, Any]:
        """The configuration with which it was trained."""
        return yaml.safe_load((self.folder / "config.yaml").read_text(encoding="utf-8"))

    def score(self, metric: str) -> float | None:
        """A metric's value at its step; None if it was not measured."""
        try:
            return self.state()["scores"].get(metric)
        except (UserError, KeyError):
            return None


def checkpoints_in(folder: Path) -> list[Checkpoint]:
    """The checkpoints of a `checkpoints/` folder in order of their steps, sound or not."""
    found = [Checkpoint(path) for path in folder.glob("step_*") if _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda checkpoint: checkpoint.step)


# --- Writing -----------------------------------------------------------------------------------


def write_checkpoint(
    folder: Path,
    state: Mapping[str, Any],
    settings: Mapping[str, Any],
    parts: Sequence[Callable[[Path], None]],
    ranks: Ranks,
) -> Checkpoint:
    """Writes `checkpoints/step_…` aside, checksums it, renames it and moves `latest`; collective.

    Each of `parts` writes into the folder that it is given, on every rank; the next one begins when
    all ranks have succeeded. Raises OSError on every rank when a write fails on any; then nothing
    of the new checkpoint is left, and older ones are untouched.
    """
    final = folder / f"step_{state['step']:06d}"
    aside = folder / f".{final.name}.partial"

    def begin() -> None:
        for leftover in (*folder.glob(".step_*.partial"), *folder.glob(".step_*.universal")):
            shutil.rmtree(leftover)
        aside.mkdir(parents=True)

    def describe() -> list[str]:
        (aside / "state.json").write_text(json.dumps(state, indent=2), encoding="utf-8")
        text = yaml.safe_dump(dict(settings), sort_keys=False)
        (aside / "config.yaml").write_text(text, encoding="utf-8")
        return files_below(aside)

    def publish(sums: dict[str, Any]) -> None:
        write_manifest(aside, sums)
        publish_folder(aside, final)
        point(folder / "latest", Checkpoint(final))

    _write_aside(aside, begin, parts, describe, publish, ranks)
    return Checkpoint(final)


def add_to_checkpoint(
    checkpoint: Checkpoint, name: str, parts: Sequence[Callable[[Path], None]], ranks: Ranks
) -> None:
    """Adds a folder to a checkpoint: it is written aside, renamed and listed in the manifest.

    Collective, as `write_checkpoint`. Raises OSError on every rank when a write fails on any; then
    the checkpoint is as before.
    """
    target = checkpoint.folder / name
    aside = checkpoint.folder / f".{name}.partial"

    def begin() -> None:
        for leftover in (aside, target):
            shutil.rmtree(leftover, ignore_errors=True)
        aside.mkdir()

    def publish(sums: dict[str, Any]) -> None:
        added = {f"{name}/{file}": s for file, s in sums.items()}
        publish_folder(aside, target)
        write_manifest(checkpoint.folder, {**read_manifest(checkpoint.folder), **added})

    _write_aside(aside, begin, parts, partial(files_below, aside), publish, ranks)


def _write_aside(
    aside: Path,
    begin: Callable[[], None],
    parts: Sequence[Callable[[Path], None]],
    describe: Callable[[], Sequence[str]],
    publish: Callable[[dict[str, Any]], None],
    ranks: Ranks,
) -> None:
    """Fills a folder on all ranks and publishes it with its checksums; a failure leaves none of it.

    `describe` names the files. Raises OSError on every rank when a write fails on any.
    """
    try:
        ranks.on_first(begin)
        for part in parts:
            ranks.agree(partial(part, aside))
        files = ranks.on_first(describe)
        # Every file is read once; the ranks share them out.
        sums = ranks.agree(lambda: checksums(aside, ranks.share(files)))
        ranks.on_first(lambda: publish({name: s for part in sums for name, s in part.items()}))
    except OSError:
        if ranks.is_first:
            shutil.rmtree(aside, ignore_errors=True)
        raise


def keep_checkpoints(folder: Path, newest: int, best: str | None) -> Checkpoint | None:
    """Removes all but the newest and the best by a metric (larger is better); returns the best.

    The link `best` points to it. Ties go to the later one; a checkpoint whose step did not measure
    the metric is no candidate.
    """
    found = checkpoints_in(folder)
    scores = [(c.score(best) if best else None, c.step, c) for c in found]
    scored = [item for item in scores if item[0] is not None and math.isfinite(item[0])]
    top = max(scored, key=lambda item: item[:2])[2] if scored else None
    for checkpoint in found[:-newest]:
        if checkpoint != top:
            shutil.rmtree(checkpoint.folder, ignore_errors=True)
    if top is None:
        (folder / "best").unlink(missing_ok=True)
    else:
        point(folder / "best", top)
    return top


def point(link: Path, checkpoint: Checkpoint) -> None:
    """Makes `link` point to a checkpoint beside it, atomically."""
    with replacing(link) as fresh:
        fresh.symlink_to(checkpoint.folder.name)
    flush_folder(link.parent)


# --- Choosing ----------------------------------------------------------------------------------


def find_checkpoint(
    run_folder: Path, resume: str, ranks: Ranks
) -> tuple[Checkpoint | None, list[str]]:
    """The checkpoint that `trainer.resume` names, the same on every rank, and notes for the user.

    `auto` is the newest sound one: complete, with every checksum right. `never` is none. A folder
    is that checkpoint, or UserError where it is not sound. The ranks look at the first one's
    candidates, and divide the files of each among them.
    """
    if resume == "never":
        return None, []
    if resume != "auto":
        named = Checkpoint(Path(resume).resolve())
        if problem := _problem_with(named, ranks):
            raise UserError(f"trainer.resume={resume} is not a complete checkpoint: {problem}")
        return named, []
    notes: list[str] = []
    candidates = ranks.gather(checkpoints_in(run_folder / "checkpoints"))[0]
    for checkpoint in reversed(candidates):
        problem = _problem_with(checkpoint, ranks)
        if problem is None:
            return checkpoint, notes
        notes.append(f"skipped the checkpoint {checkpoint.folder.name}: {problem}")
    return None, notes


def _problem_with(checkpoint: Checkpoint, ranks: Ranks) -> str | None:
    """The fault of a checkpoint, None if it is sound; the same on every rank."""
    manifest, problem = ranks.gather(_manifest_of(checkpoint))[0]
    if problem is None:
        mine = {name: manifest[name] for name in ranks.share(sorted(manifest))}
        found = ranks.gather(mismatch(checkpoint.folder, mine))
        problem = next((problem for problem in found if problem), None)
    return problem


def _manifest_of(checkpoint: Checkpoint) -> tuple[dict[str, Any], str | None]:
    try:
        manifest = read_manifest(checkpoint.folder)
    except (OSError, ValueError):
        return {}, "it has no readable manifest.json"
    if lacking := {"state.json", "config.yaml"} - manifest.keys():
        return {}, f"its manifest.json lacks {', '.join(sorted(lacking))}"
    return manifest, None
