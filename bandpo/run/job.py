"""Builds the parts of a training job from its configuration, in the order that they need."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from itertools import chain
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from torch import Tensor

from bandpo.alarms import AlarmPanel, always_on
from bandpo.artifacts.display import Display
from bandpo.artifacts.random_state import load_random_state, seed_everything
from bandpo.artifacts.saver import Checkpoints
from bandpo.artifacts.tracking import Tracker
from bandpo.artifacts.waiting import read_rollout
from bandpo.batching import Minibatch
from bandpo.config.schema import Config, coarsest_dtype
from bandpo.data.benchmarks import load_benchmarks
from bandpo.data.prompts import reference_answer
from bandpo.data.sources import load_problems
from bandpo.disk.lock import only_one
from bandpo.errors import RunHalted
from bandpo.evaluation.eval_config import sampling_in
from bandpo.evaluation.evaluate import Evaluator
from bandpo.evaluation.store import Store
from bandpo.learner.learner import DeepSpeedLearner
from bandpo.learner.updates.result import UpdateResult
from bandpo.loss.debug import debugging
from bandpo.model.agreement import TOLERANCE
from bandpo.ranks.collectives import Ranks
from bandpo.reward import Reward, verifier_version
from bandpo.rollout.draws import Draws
from bandpo.rollout.engine import RolloutEngine
from bandpo.rollout.scoring import GroupSummary
from bandpo.run.actor import Actor, Replaceable
from bandpo.run.console import RunLog
from bandpo.run.host import Host, fitted_here
from bandpo.run.inputs import Inputs, read_inputs
from bandpo.run.minibatches import minibatches_of
from bandpo.run.nonfinite_guard import NonfiniteGuard
from bandpo.run.objective import loss_of
from bandpo.run.preflight import preflight
from bandpo.run.probe import EXPORT_PROBE, probed
from bandpo.types import Group

logger = logging.getLogger(__name__)


class Job:
    """The parts of a run on one rank, ready for the loop; close it to end engine and workers."""

    def __init__(
        self,
        config: Config,
        log: RunLog,
        display: Display,
        host: Host | None = None,
        command: str = "",
    ) -> None:
        """Builds everything that can fail on bad input before anything expensive.

        `log` comes into the run's folder once that is prepared. A `host` that is given stays open
        when the job closes, for the next one. `command` is the command line for model cards.
        """
        self.started, self._display = time.time(), display
        self.folder = Path(config.run.dir)
        self._advantages: Callable[..., Tensor] = instantiate(config.method.advantage)
        display.phase("reading the data")
        problems = load_problems(config.data.train, config.data.columns.named())
        root = None if config.data.root is None else Path(config.data.root)
        benchmarks = load_benchmarks(config.eval.benchmarks, root)

        with ExitStack() as stack:  # what is open when something fails is closed
            host = host or stack.enter_context(Host())
            self.ranks = ranks = host.ranks
            if ranks.is_first:
                stack.enter_context(only_one(self.folder))
            inputs = read_inputs(config, problems, benchmarks, ranks)
            model, tokenizer, start = inputs.model, inputs.tokenizer, inputs.start
            self.config = config = start.config
            loss = loss_of(config)
            checkpoint, self.start = start.checkpoint, start.step
            self.waiting = read_rollout(checkpoint.folder, ranks) if checkpoint else None
            self._prompts, self._tasks = inputs.prompts, inputs.tasks
            self._prompt_date = inputs.prompt_date
            reward: Replaceable[Reward] = Replaceable(
                "reward", lambda: instantiate(config.reward), lambda reward: reward.close()
            )
            stack.callback(reward.close)
            answer = reference_answer(inputs.prompts.all[0], tokenizer)
            notes = preflight(
                *(config, model, tokenizer, reward.current, answer, command, ranks),
                resumed=self.start > 0,
            )
            kept = start.prepare_folder() if ranks.is_first else None
            notes = [*start.notes, *([kept] if kept else []), *inputs.notes, *notes]
            ranks.barrier()  # what is in the folder from before is set aside
            notes.append(_kept(log, self.folder))
            tracker = _tracker(config, inputs, ranks, display)
            self.tracker = stack.enter_context(closing(tracker))
            for note in [*notes, *_introduction(config, inputs, ranks)]:
                self.tracker.say(note)
            fit = fitted_here(config, ranks)
            display.phase("loading the policy")
            # The learner first: vLLM would make a process group of size 1, which DeepSpeed rejects.
            self.learner = DeepSpeedLearner(
                fit.learner,
                fit.model,
                model.path,
                loss,
                ranks,
                temperature=config.rollout.temperature,
                rollouts=config.trainer.steps,
                seed=config.seed,
            )
            if checkpoint:
                self.learner.load(checkpoint.folder, start.state["ranks"])
            tolerance = config.rollout.probe_tolerance or TOLERANCE[coarsest_dtype(config)]

            # Two threads must not share collectives.
            self._rollout_ranks = ranks.apart() if config.rollout.lag else ranks
            self.actor = self._actor(fit, host, inputs, reward, answer, tolerance)
            sample = probed(answer, 1, min(EXPORT_PROBE, inputs.context))
            self.checkpoints = self._checkpoints(inputs, sample, tolerance, command)
            self.tracker.describe(
                **_facts(config, inputs, ranks, self.actor.engine.name, self.learner.lm)
            )
            self._nonfinite_guard = NonfiniteGuard(
                config.trainer.max_skipped_updates, self.folder, ranks, self.tracker.say
            )
            alarms = [*always_on(config), *(instantiate(alarm) for alarm in config.alarms)]
            self._alarms = AlarmPanel(alarms, self.tracker.past(), self.tracker.say)
            seed_everything(config.seed)  # last, since building the parts draws random numbers
            if checkpoint:
                load_random_state(checkpoint.folder, ranks.rank)
            self._open = stack.pop_all()

    def _actor(
        self,
        fit: Config,
        host: Host,
        inputs: Inputs,
        reward: Replaceable[Reward],
        answer: Group,
        tolerance: float,
    ) -> Actor:
        """Engine and reward with the learner that they sample for."""

        def start_engine() -> RolloutEngine:
            self._display.phase(f"starting {_engine(self.config)}")
            return host.engine(fit, inputs.model)

        return Actor(
            self.config.rollout,
            Replaceable("engine", start_engine, lambda _: host.discard_engine()),
            reward,
            self.learner,
            self.ranks,
            self._rollout_ranks,
            answer=answer,
            tolerance=tolerance,
            context=inputs.context,
            weight_version=int(inputs.start.state["weight_version"]),
        )

    def _checkpoints(
        self, inputs: Inputs, sample: Group, tolerance: float, command: str
    ) -> Checkpoints:
        """The saver of the run; `sample` is held against every export."""
        return Checkpoints(
            self.config,
            self.ranks,
            self.tracker,
            self.learner,
            inputs.tokenizer,
            loop_state=self._loop_state,
            problems=self._prompts.problems_after,
            sample=sample,
            tolerance=tolerance,
            facts={"train problems": len(inputs.prompts)},
            command=command,
            resumed_from=inputs.start.checkpoint,
        )

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

    def draws(self, step: int) -> Draws:
        """The prompts of a step, to be drawn and scored."""
        return self._prompts.draws(step, self._rollout_ranks)

    def batches(self, scored: Sequence[GroupSummary], step: int) -> list[Minibatch]:
        """This rank's part of the minibatches of a step's updates, of all ranks' groups.

        Collective: each sample goes to the rank that trains on it.
        """
        batches = minibatches_of(
            self.config, self._advantages, self.learner.cost, self.ranks, scored, step
        )
        if self.config.rollout.lag and self.learner.loss.correction is None:
            for sample in dict.fromkeys(chain.from_iterable(batches)):
                if sample.weight_version != self.actor.weight_version:
                    sample.take_behaviour_policy()
        return batches

    @property
    def trace_file(self) -> Path | None:
        """The file for this rank's profiler trace; None without `trainer.profile`."""
        wanted = self.config.trainer.profile
        return self.folder / "profile" / f"rank{self.ranks.rank}.json.gz" if wanted else None

    def recorded(self, batches: Sequence[Minibatch], step: int) -> Iterable[Minibatch]:
        """The minibatches, recorded in tokens/ as the loss sees them if the step is due for it."""
        every = self.config.trainer.dump_tokens_every
        if every == 0 or step % every:
            return batches
        from bandpo.methods.records import dump_path, recorded  # pyarrow takes 40 MB

        path = dump_path(self.folder, step, self.ranks.rank)
        return recorded(batches, path, self.learner.observers)

    def update(self, batch: Minibatch, step: int) -> UpdateResult | None:
        """One optimizer update; raises RunHalted when too many in a row were nonfinite.

        In the first step also UserError for values that are no log-probabilities.
        """
        with debugging(step == self.start + 1):
            result = self.learner.update(batch, step)
        if result is not None:
            self._nonfinite_guard.check(result, batch, step)
            result = dataclasses.replace(result, pruned_share=batch.pruned_share)
        return result

    def check_alarms(self, step: int, metrics: Mapping[str, float]) -> None:
        """Raises RunHalted on every rank if an alarm on the first one's metrics stops the run."""
        halt = None
        if self.ranks.is_first:
            try:
                self._alarms.check(step, metrics)
            except RunHalted as error:
                halt = error
        self.ranks.raise_any(halt)

    def evaluate(self, step: int) -> dict[str, float]:
        """The metrics of every benchmark at this step; samples and summary go to eval/<step>/."""
        config = self.config
        evaluator = Evaluator(
            self.actor.engine,
            self.actor.reward,
            sampling_in(config),
            config.eval.seed,
            model={"run": config.run.name, "step": step, "dtype": config.model.dtype},
            scoring=config.reward,
            ranks=self.ranks,
        )
        # Samples of a step that is repeated may be those of other weights.
        store = Store(self.folder / "eval" / f"{step:06d}", resume=False, on_loss=logger.warning)
        self._display.phase("evaluating")
        summaries = evaluator.run(self._tasks, store, self._show_evaluation)
        found = {name: value for s in summaries for name, value in s.scalars().items()}
        return self.ranks.gather(found)[0]

    def _show_evaluation(self, benchmark: str, done: int, to_do: int) -> None:
        share = f"{done}/{to_do}" if self.ranks.size == 1 else f"{done / to_do:.0%}"
        self._display.progress(f"evaluating {benchmark} {share}")

    def _loop_state(self, step: int, waits: bool) -> dict[str, Any]:
        """The state besides the learner's with which the loop resumes after a step."""
        return {
            "weight_version": self.actor.weight_version,
            "sampler": self._prompts.state_after(step, waits),
            "prompt_date": self._prompt_date,
        }


def _kept(log: RunLog, folder: Path) -> str:
    """Where the run's output goes besides the console, for its user."""
    try:
        return f"all output, of libraries too: {log.keep_in(folder)}"
    except OSError as error:
        return f"the output of libraries is not kept: {error}"


def _engine(config: Config) -> str:
    name: str = config.rollout.engine["_target_"].rpartition(".")[2]
    return "vLLM" if name.startswith("VLLM") else name


def _tracker(config: Config, inputs: Inputs, ranks: Ranks, display: Display) -> Tracker:
    return Tracker(
        Path(config.run.dir),
        config.tracking,
        display,
        active=ranks.is_first,
        steps=config.trainer.steps,
        name=config.run.name,
        settings=config.model_dump(mode="json"),
        ids=inputs.start.tracker_ids,
        after=inputs.start.step,
    )


def _introduction(config: Config, inputs: Inputs, ranks: Ranks) -> list[str]:
    """Lines for the user, before the policy is loaded."""
    rollout, start, dropped = config.rollout, inputs.start.step, inputs.prompts.dropped
    lines = []
    if dropped:
        lines.append(
            f"dropped {dropped} prompts longer than {config.data.max_prompt_tokens} tokens"
        )
    if config.model.dtype == "bfloat16" and config.learner.zero_stage < 2:
        lines.append(
            f"learner.zero_stage={config.learner.zero_stage} adds up bfloat16 gradients of "
            "micro-batches in bfloat16, which loses small ones; learner.zero_stage=2 does not"
        )
    if start:
        lines.append(f"resuming {config.run.name} after step {start}")
    ranked = f"{ranks.size} ranks" if ranks.size > 1 else "1 rank"
    lines.append(
        f"{config.method.name} on {config.model.path}: {rollout.prompts_per_step} prompts × "
        f"{rollout.group_size} samples per step, {ranked}, starting {_engine(config)}"
    )
    return lines


def _facts(config: Config, inputs: Inputs, ranks: Ranks, engine: str, lm: Any) -> dict[str, Any]:
    """The facts of run.json that belong to this run."""
    return {
        "engine": engine.split("_")[0],
        "rollout": engine,
        "learner": "deepspeed",
        "verifier": verifier_version(),
        "method": config.method.name,
        "ranks": ranks.size,
        "model": config.model.path,
        "parameters": sum(getattr(p, "ds_numel", p.numel()) for p in lm.parameters()),
        "train_problems": len(inputs.prompts),
        "dropped_prompts": inputs.prompts.dropped,
        "prompting": inputs.prompts.prompting.facts(),
        "resumed_from_step": inputs.start.step,
        "prompt_date": inputs.prompt_date,
    }
