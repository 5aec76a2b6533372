"""Saves a run's checkpoints, and the policy in them as a transformers folder that is proved."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bandpo.artifacts.checkpoint import (
    Checkpoint,
    add_to_checkpoint,
    keep_checkpoints,
    write_checkpoint,
)
from bandpo.artifacts.model_card import model_card
from bandpo.artifacts.random_state import save_random_state
from bandpo.artifacts.tracking import Tracker
from bandpo.artifacts.waiting import write_rollout
from bandpo.batching import samples_of
from bandpo.config.identity import config_hash
from bandpo.config.schema import Config
from bandpo.data.sampling.history import PROBLEMS
from bandpo.environment import git_commit
from bandpo.errors import UserError
from bandpo.learner.export import prove_export
from bandpo.learner.learner import DeepSpeedLearner
from bandpo.model.tying import shares_head
from bandpo.ranks.collectives import Ranks
from bandpo.redaction import redact, redacted
from bandpo.rollout.draws import Rollout
from bandpo.rollout.scoring import RewardFailed
from bandpo.types import Group

HEAD = {True: "the input embedding", False: "of its own"}


class Checkpoints:
    """Writes `checkpoints/` of a run: the learner's state first, then `hf/` where it is due.

    Every method is collective.
    """

    def __init__(
        self,
        config: Config,
        ranks: Ranks,
        tracker: Tracker,
        learner: DeepSpeedLearner,
        tokenizer: Any,
        *,
        loop_state: Callable[[int, bool], Mapping[str, Any]],
        problems: Callable[[int, bool], str],
        sample: Group,
        tolerance: float,
        facts: Mapping[str, Any],
        command: str = "",
        resumed_from: Checkpoint | None = None,
    ) -> None:
        """`loop_state(step, waits)` is the loop's state after a step, as plain JSON values.

        `problems(step, waits)` are the lines of problems.jsonl then. `waits` tells whether the next
        step's rollout waits already. The policy in `hf/` is proved on `sample` within `tolerance`;
        `facts` and `command` go into its model card. The run resumes from the checkpoint
        `resumed_from`.
        """
        self._config, self._ranks, self._tracker = config, ranks, tracker
        self._learner, self._tokenizer = learner, tokenizer
        self._loop_state, self._sample, self._tolerance = loop_state, sample, tolerance
        self._problems = problems
        self._facts, self._command, self._resumed_from = facts, command, resumed_from
        self.newest = resumed_from.step if resumed_from else 0
        self._folder = Path(config.run.dir) / "checkpoints"

    def save(self, step: int, metrics: Mapping[str, float], waiting: Rollout | None = None) -> bool:
        """Writes the checkpoint of a step and removes superseded ones; whether it was written.

        `waiting` is the rollout that waits for the next step. A full disk costs the checkpoint, not
        the run: older ones are untouched, and the next due step writes another. Raises UserError
        for the last step's.
        """
        self._tracker.phase("saving a checkpoint")
        waits = waiting is not None
        problems = self._problems(step, waits)
        self._tracker.write(PROBLEMS, problems)
        trainer = self._config.trainer
        best = trainer.keep_best
        scores = {name: v for name, v in metrics.items() if name.startswith("eval/")}
        if best and best in metrics:
            scores[best] = metrics[best]
        elif best:
            self._tracker.say(f"step {step} has no {best}: its checkpoint cannot be the best")
        state = {
            "step": step,
            "ranks": self._ranks.size,
            "config_hash": config_hash(self._config),
            "trackers": self._tracker.ids(),
            **self._loop_state(step, waits),
            "scores": scores,
        }
        try:
            checkpoint = write_checkpoint(
                self._folder,
                state,
                redacted(self._config.model_dump(mode="json")),
                self._parts(problems, waiting),
                self._ranks,
            )
        except OSError as error:
            self._report(
                step,
                f"the checkpoint of step {step} could not be written: {error}",
                at_the_end="Make room and start the run again: it resumes from the checkpoint "
                "before this one",
                otherwise="older checkpoints are kept, and the next one is written when due",
            )
            return False
        self.newest = step
        if self._has_policy(step):
            self._export(checkpoint, scores)
        self._ranks.on_first(lambda: keep_checkpoints(self._folder, trainer.keep_checkpoints, best))
        return True

    @contextmanager
    def rescue(
        self,
        step: int,
        metrics: Mapping[str, float] | None = None,
        waiting: Rollout | None = None,
    ) -> Iterator[None]:
        """Saves the training so far before a reward that fails inside ends the run.

        `step` is the last one whose updates are done; `metrics` are its metrics if they have not
        been logged yet, and `waiting` is as in `save`.
        """
        try:
            yield
        except RewardFailed as error:
            if metrics is not None:
                self._tracker.log(step, metrics)
            where = f"step {step + 1}" if metrics is None else f"the evaluation of step {step}"
            message = f"{where}: {error}"
            unsaved = step > self.newest
            if step > 0 and (not unsaved or self.save(step, metrics or {}, waiting)):
                message += (
                    f". Training up to step {step} is saved: fix the reward and start the run "
                    "again, which resumes from there"
                )
            raise RewardFailed.caused(message, error) from error

    def export_missing(self) -> None:
        """Writes hf/ if it is missing from the checkpoint from which the run resumes."""
        source = self._resumed_from
        if source is None or not self._has_policy(source.step):
            return
        if not self._ranks.gather((source.folder / "hf").is_dir())[0]:
            self._export(source, source.state().get("scores", {}))

    def _has_policy(self, step: int) -> bool:
        """Whether the checkpoint of this step should have hf/."""
        every = self._config.trainer.save_hf_every
        return step >= self._config.trainer.steps or (every > 0 and step % every == 0)

    def _export(self, checkpoint: Checkpoint, scores: Mapping[str, float]) -> None:
        """Adds the policy as hf/ to a checkpoint, and proves that it is the learner's.

        A failure costs no step and the run continues. Raises UserError for the last step's.
        """
        step = checkpoint.step
        parts = [self._save_policy, lambda folder: self._save_card(folder, step, scores)]
        try:
            add_to_checkpoint(checkpoint, "hf", parts, self._ranks)
        except OSError as error:
            self._report(
                step,
                f"{checkpoint.folder} is complete but for hf/, which was not written: {error}",
                at_the_end="No training is lost: fix this (make room, if the disk is full) and "
                "start the run again, which writes hf/ from the checkpoint",
                otherwise="the run continues",
            )

    def _report(self, step: int, problem: str, at_the_end: str, otherwise: str) -> None:
        """Reports a failed write; raises UserError where no later step can make up for it."""
        if step >= self._config.trainer.steps:
            raise UserError(f"{problem}. {at_the_end}") from None
        self._tracker.say(f"{problem}; {otherwise}")

    def _parts(self, problems: str, waiting: Rollout | None) -> list[Callable[[Path], None]]:
        """The writers of a checkpoint's parts, in order; every rank calls all of them."""
        parts: list[Callable[[Path], None]] = [
            # Without the record up to here, a run that resumes would have a gap.
            lambda _: self._tracker.flush(),
            self._learner.save,
            lambda folder: save_random_state(folder, self._ranks.rank),
            lambda folder: self._save_problems(folder, problems),
        ]
        if waiting is not None:
            parts.append(lambda folder: write_rollout(folder, self._ranks, waiting))
        return parts

    def _save_problems(self, folder: Path, problems: str) -> None:
        if self._ranks.is_first:
            (folder / PROBLEMS).write_text(problems, encoding="utf-8")

    def _save_policy(self, folder: Path) -> None:
        samples = samples_of(self._sample, [0.0])
        expected = self._learner.logprobs(samples)
        self._learner.save_hf(folder, self._tokenizer)
        if self._ranks.is_first:
            prove_export(folder, self._config.model, samples, expected, self._tolerance)

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
