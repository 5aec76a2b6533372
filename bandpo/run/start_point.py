"""Where a run begins: at its first step, or after the checkpoint that `trainer.resume` names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bandpo.artifacts.checkpoint import Checkpoint, find_checkpoint, point
from bandpo.artifacts.folder import cut_after, holds_a_run, set_aside
from bandpo.config.identity import changes
from bandpo.config.schema import Config
from bandpo.errors import UserError
from bandpo.ranks.collectives import Ranks


@dataclass(frozen=True)
class Beginning:
    """The checkpoint to go on from, None for a new run, and what the user should know of it."""

    config: Config
    checkpoint: Checkpoint | None
    state: dict[str, Any]
    notes: tuple[str, ...]

    @property
    def step(self) -> int:
        """The last step that is done with."""
        return int(self.state["step"])

    @property
    def tracker_ids(self) -> dict[str, str]:
        """The runs that trackers go on with."""
        return dict(self.state["trackers"])

    def prepare_folder(self) -> str | None:
        """Makes the run folder ready; says where what it held is kept. For the first rank alone.

        Steps that are written again are cut. What is not goes to `previous/<number>/`: all that
        another run has left here, or what comes after the step where a run goes back on purpose.
        """
        folder = Path(self.config.run.dir)
        if self._is_the_run_of(folder):
            kept = cut_after(folder, self.step if self.checkpoint else -1)
            if self.checkpoint:
                point(folder / "checkpoints" / "latest", self.checkpoint)
        else:
            kept = set_aside(folder) if holds_a_run(folder) else None
        if kept is None:
            return None
        return f"what {folder} held beyond this run's beginning is kept in {kept}"

    def _is_the_run_of(self, folder: Path) -> bool:
        """Whether what a folder holds is this run's own past, which it may write again."""
        if self.checkpoint is not None:
            return self.checkpoint.folder.resolve().parent == (folder / "checkpoints").resolve()
        try:
            before = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError):
            return False
        goes_on = self.config.trainer.resume == "auto" and isinstance(before, dict)
        return goes_on and not any(changes(before, self.config))


def find_beginning(config: Config, ranks: Ranks) -> Beginning:
    """Chooses the checkpoint and compares its settings; collective, and touches nothing.

    Raises UserError where a setting was changed that would make another run of it.
    """
    checkpoint, notes = find_checkpoint(Path(config.run.dir), config.trainer.resume, ranks)
    if checkpoint is None:
        # The first sync makes version 1 of weights that no update has touched.
        fresh = {"step": 0, "weight_version": 1, "ranks": ranks.size, "trackers": {}}
        return Beginning(config, None, fresh, tuple(notes))
    state = checkpoint.state()
    changed = changes(checkpoint.settings(), config)
    if changed.determining:
        raise UserError.join(
            f"{config.run.dir} cannot go on from {checkpoint.folder.name} with other settings, "
            "which would make another run of it. Put them back, choose another run.dir (with "
            "model.path=<a checkpoint's hf/> to begin with its weights), or begin anew with "
            "trainer.resume=never. What changed (was → is):",
            changed.determining,
        )
    rounding = list(changed.rounding)
    if state["ranks"] != ranks.size:
        rounding.append(f"ranks: {state['ranks']} → {ranks.size} (they share out minibatches anew)")
    if rounding:
        notes.append(
            "changed since the checkpoint: " + ", ".join(rounding) + "; the run goes on "
            "with other floating-point rounding, so no longer bitwise as it would have been"
        )
    return Beginning(config, checkpoint, state, tuple(notes))
