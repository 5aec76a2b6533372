"""Checkpoints that are complete whenever they can be seen."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bandpo.errors import UserError
from bandpo.learner.ranks import Ranks


@dataclass(frozen=True)
class Checkpoint:
    """A folder `checkpoints/step_000010` with `engine/`, `hf/` and `state.json`."""

    folder: Path

    @property
    def hf(self) -> Path:
        """The policy for transformers and vLLM."""
        return self.folder / "hf"

    def state(self) -> dict[str, Any]:
        """The loop's own state; raises UserError for a folder that is no checkpoint."""
        try:
            return json.loads((self.folder / "state.json").read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{self.folder} is not a complete checkpoint: {error}") from None


def write_checkpoint(
    folder: Path,
    state: dict[str, Any],
    save: Callable[[Path], None],
    ranks: Ranks,
    keep: int,
) -> Checkpoint:
    """Writes `checkpoints/step_…` aside, renames it, moves `latest`, drops the oldest; collective.

    `save` writes the learner's parts into the folder it is given, on every rank.
    """
    final = folder / f"step_{state['step']:06d}"
    aside = folder / f".{final.name}.partial"
    if ranks.is_first:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    ranks.barrier()
    save(aside)
    ranks.barrier()
    if ranks.is_first:
        (aside / "state.json").write_text(json.dumps(state, indent=2))
        shutil.rmtree(final, ignore_errors=True)
        aside.rename(final)
        _point(folder / "latest", final.name)
        for old in sorted(folder.glob("step_*"))[:-keep]:
            shutil.rmtree(old)
    ranks.barrier()
    return Checkpoint(final)


def _point(link: Path, target: str) -> None:
    fresh = link.with_name(".latest")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    os.replace(fresh, link)


def find_checkpoint(run_folder: Path, resume: str) -> Checkpoint | None:
    """The checkpoint that `trainer.resume` names: the newest, none, or the given folder."""
    if resume == "never":
        return None
    if resume != "auto":
        return Checkpoint(Path(resume))
    latest = run_folder / "checkpoints" / "latest"
    return Checkpoint(latest.resolve()) if latest.exists() else None
