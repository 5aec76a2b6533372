"""A run's checkpoints, and the policy in each as a transformers folder that is proved."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bandpo.artifacts.checkpoint import (
    Checkpoint,
    add_to_checkpoint,
    keep_checkpoints,
    write_checkpoint,
)
from bandpo.artifacts.model_card import model_card
from bandpo.artifacts.random_state import random_state
from bandpo.artifacts.tracking import Tracker
from bandpo.batching import samples_of
from bandpo.config.schema import Config
from bandpo.environment import git_commit
from bandpo.errors import UserError
from bandpo.learner.export import prove_export
from bandpo.learner.learner import DeepSpeedLearner
from bandpo.model.agreement import TOLERANCE
from bandpo.model.tying import shares_head
from bandpo.ranks.collectives import Ranks
from bandpo.redaction import redact, redacted
from bandpo.rollout.draws import Rollout, write_rollout
from bandpo.types import Group

HEAD = {True: "the input embedding", False: "of its own"}


class Checkpoints:
    """Writes `checkpoints/` of a run: the learner's state first, then `hf/` where it is due.

    `sample` is what the policy in `hf/` is proved on; `facts` and `command` go into its model card.
    `begun_from` is the checkpoint that the run goes on from. Every method is collective.
    """

    def __init__(
        self,
        config: Config,
        ranks: Ranks,
        tracker: Tracker,
        learner: DeepSpeedLearner,
        tokenizer: Any,
        *,
        sample: Group,
        facts: Mapping[str, Any],
        command: str = "",
        begun_from: Checkpoint | None = None,
    ) -> None:
        self._config, self._ranks, self._tracker = config, ranks, tracker
        self._learner, self._tokenizer = learner, tokenizer
        self._sample, self._facts, self._command = sample, facts, command
        self._begun_from = begun_from
        self.newest = begun_from.step if begun_from else 0
        self._folder = Path(config.run.dir) / "checkpoints"

    def save(
        self,
        state: Mapping[str, Any],
        metrics: Mapping[str, float],
        waiting: Rollout | None = None,
    ) -> bool:
        """Writes the checkpoint of a step and drops those that are not kept; whether it could.

        `state` is the loop's, `waiting` is the rollout that waits for the next step. A full disk
        fails the checkpoint and not the run: the ones before are untouched and the next due step
        tries again. Raises UserError when it was the last step's.
        """
        trainer, step = self._config.trainer, state["step"]
        best = trainer.keep_best
        scores = {name: v for name, v in metrics.items() if name.startswith("eval/")}
        if best and best in metrics:
            scores[best] = metrics[best]
        elif best:
            self._tracker.say(f"step {step} has no {best}: its checkpoint cannot be the best")
        try:
            checkpoint = write_checkpoint(
                self._folder,
                {**state, "scores": scores},
                redacted(self._config.model_dump(mode="json")),
                self._parts(waiting),
                self._ranks,
            )
        except OSError as error:
            problem = f"the checkpoint of step {step} could not be written: {error}"
            if step == trainer.steps:
                raise UserError(
                    f"{problem}. Make room and start the run again: it goes on from the checkpoint "
                    "before this one"
                ) from None
            self._tracker.say(f"{problem}; those before it are kept, and the next due step tries")
            return False
        self.newest = step
        if self._has_policy(step):
            self._export(checkpoint, scores)
        self._ranks.on_first(lambda: keep_checkpoints(self._folder, trainer.keep_checkpoints, best))
        return True

    def export_missing(self) -> None:
        """Writes the hf/ that the checkpoint which the run goes on from should have and lacks."""
        begun_from = self._begun_from
        if begun_from is None or not self._has_policy(begun_from.step):
            return
        if not self._ranks.gather((begun_from.folder / "hf").is_dir())[0]:
            self._export(begun_from, begun_from.state().get("scores", {}))

    def _has_policy(self, step: int) -> bool:
        """Whether the checkpoint of this step is to have hf/."""
        every = self._config.trainer.save_hf_every
        return step >= self._config.trainer.steps or (every > 0 and step % every == 0)

    def _export(self, checkpoint: Checkpoint, scores: Mapping[str, float]) -> None:
        """Adds the policy as hf/ to a checkpoint, and proves that it is the learner's.

        What fails here costs no step: the run goes on. Raises UserError when it was the last one.
        """
        step = checkpoint.step
        parts = [self._save_policy, lambda folder: self._save_card(folder, step, scores)]
        try:
            add_to_checkpoint(checkpoint, "hf", parts, self._ranks)
        except OSError as error:
            problem = f"{checkpoint.folder} is complete but for hf/, which was not written: {error}"
            if step >= self._config.trainer.steps:
                raise UserError(
                    f"{problem}. Nothing that was learned is lost: mend this (make room, if the "
                    "disk is full) and start the run again, which writes hf/ from the checkpoint"
                ) from None
            self._tracker.say(f"{problem}; the run goes on")

    def _parts(self, waiting: Rollout | None) -> list[Callable[[Path], None]]:
        """What every rank writes into a checkpoint, in this order."""
        parts: list[Callable[[Path], None]] = [
            # A run that goes on from here would have a gap without the record up to it.
            lambda _: self._tracker.flush(),
            self._learner.save,
            self._save_random_state,
        ]
        if waiting is not None:
            parts.append(lambda folder: write_rollout(folder, self._ranks, waiting))
        return parts

    def _save_random_state(self, folder: Path) -> None:
        file = random_file(folder, self._ranks.rank)
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(random_state()), encoding="utf-8")

    def _save_policy(self, folder: Path) -> None:
        model = self._config.model
        samples = samples_of(self._sample, [0.0])
        expected = self._learner.logprobs(samples)
        self._learner.save_hf(folder, self._tokenizer)
        if self._ranks.is_first:
            tolerance = self._config.rollout.probe_tolerance or TOLERANCE[model.dtype]
            prove_export(folder, model, samples, expected, tolerance)

    def _save_card(self, folder: Path, step: int, scores: Mapping[str, float]) -> None:
        if not self._ranks.is_first:
            return
        facts = {
            "output head": HEAD[shares_head(self._learner.lm)],
            **self._facts,
            "bandpo commit": git_commit() or "unknown",
        }
        card = model_card(self._config, step, scores, self._command, facts)
        (folder / "README.md").write_text(redact(card), encoding="utf-8")


def random_file(checkpoint: Path, rank: int) -> Path:
    """Where a checkpoint holds a rank's random state."""
    return checkpoint / "random" / f"rank_{rank}.json"
