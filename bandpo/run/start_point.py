"""Where a run starts: at its first step, or after the checkpoint that `trainer.resume` names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bandpo.artifacts.checkpoint import Checkpoint, find_checkpoint, point
from bandpo.artifacts.folder import cut_after, holds_a_run, set_aside
from bandpo.config.identity import changes
from bandpo.config.rollout_correction import AUTO, NONE, by_precision, correction_in, name_of
from bandpo.config.schema import Config
from bandpo.data.sampling.history import PROBLEMS
from bandpo.disk.whole import write_atomically
from bandpo.errors import UserError
from bandpo.learner.updates.rates import moved_horizon
from bandpo.ranks.collectives import Ranks


@dataclass(frozen=True)
class StartPoint:
    """The checkpoint to resume from, None for a new run, its state, and notes for the user."""

    config: Config
    checkpoint: Checkpoint | None
    state: dict[str, Any]
    notes: tuple[str, ...]

    @property
    def step(self) -> int:
        """The last step that is done."""
        return int(self.state["step"])

    @property
    def tracker_ids(self) -> dict[str, str]:
        """The runs that trackers resume."""
        return dict(self.state["trackers"])

    def prepare_folder(self) -> str | None:
        """Clears the run folder, on the first rank alone; returns a note if files were moved.

        Steps that will be written again are cut. Another run's files, and later steps of a run
        that returns to an earlier checkpoint, move to `previous/<number>/`.
        """
        folder = Path(self.config.run.dir)
        if self._is_the_run_of(folder):
            kept = cut_after(folder, self.step if self.checkpoint else -1)
            if self.checkpoint:
                point(folder / "checkpoints" / "latest", self.checkpoint)
        else:
            kept = set_aside(folder) if holds_a_run(folder) else None
        self._restore(folder / PROBLEMS)
        if kept is None:
            return None
        return f"files in {folder} from before this start are kept in {kept}"

    def _restore(self, file: Path) -> None:
        """Makes a file of the folder the one that the checkpoint has, or removes it."""
        before = self.checkpoint and self.checkpoint.folder / file.name
        if before and before.exists():
            write_atomically(file, before.read_bytes())
        else:
            file.unlink(missing_ok=True)

    def _is_the_run_of(self, folder: Path) -> bool:
        """Whether a folder holds this run's own past, which it may write again."""
        if self.checkpoint is not None:
            return self.checkpoint.folder.resolve().parent == (folder / "checkpoints").resolve()
        try:
            before = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError):
            return False
        resumes = self.config.trainer.resume == "auto" and isinstance(before, dict)
        return resumes and not any(changes(before, self.config))


def with_correction(config: Config, before: Mapping[str, Any] | None) -> tuple[Config, list[str]]:
    """The configuration with a `method.correction` other than auto, and notes on it for the user.

    `before` are the settings of the checkpoint to resume from: auto is what that run did.
    """
    method = config.method
    if method.correction != AUTO:
        return config, []
    choice = by_precision(config.model.dtype, config.rollout.engine, method.loss)
    found = choice.name if before is None else correction_in(before)
    settled = method.model_copy(update={"correction": found})
    notes = []
    if found != choice.name:
        notes = [f"correction: {name_of(found)}, as before this run was resumed"]
    elif found != NONE:
        reason = f"since {choice.reason}; method.correction=none turns it off"
        notes = [f"correction: {found}, {reason} (docs/mismatch.md)"]
    return config.model_copy(update={"method": settled}), notes


def find_start_point(config: Config, ranks: Ranks) -> StartPoint:
    """Chooses the checkpoint and compares its settings; collective, and writes nothing.

    Raises UserError where a changed setting would make it another run.
    """
    checkpoint, notes = find_checkpoint(Path(config.run.dir), config.trainer.resume, ranks)
    before = None if checkpoint is None else checkpoint.settings()
    config, correction = with_correction(config, before)
    notes += correction
    if checkpoint is None or before is None:
        # The first sync sends version 1: weights before any update.
        fresh = {"step": 0, "weight_version": 1, "ranks": ranks.size, "trackers": {}}
        return StartPoint(config, None, fresh, tuple(notes))
    state = checkpoint.state()
    changed = changes(before, config)
    if changed.determining:
        raise UserError.join(
            f"{config.run.dir} cannot resume from {checkpoint.folder.name}: changed settings "
            "would make it another run. Restore them, choose another run.dir (with "
            "model.path=<a checkpoint's hf/> to start from its weights), or start anew with "
            "trainer.resume=never. Changed (was → is):",
            changed.determining,
        )
    rounding = list(changed.rounding)
    if state["ranks"] != ranks.size:
        rounding.append(f"ranks: {state['ranks']} → {ranks.size} (minibatches are divided anew)")
    if rounding:
        notes.append(
            f"changed since the checkpoint: {', '.join(rounding)}; floating-point rounding "
            "differs, so the run is no longer bitwise the same"
        )
    steps = before["trainer"]["steps"], config.trainer.steps
    if note := moved_horizon(config.learner, *steps, step=int(state["step"])):
        notes.append(note)
    return StartPoint(config, checkpoint, state, tuple(notes))
