"""Builds the parts of a training job from its configuration, in the order that they need."""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
from hydra.utils import instantiate
from torch import Tensor

from bandpo.alarms import AlarmPanel, CutOff
from bandpo.artifacts.checkpoint import Checkpoint
from bandpo.artifacts.random_state import restore_random_state, seed_everything
from bandpo.artifacts.saver import Checkpoints, random_file
from bandpo.artifacts.tracking import Tracker
from bandpo.batching import Sample, deal, minibatches
from bandpo.config.identity import config_hash
from bandpo.config.schema import Config
from bandpo.data.benchmarks import load_benchmarks
from bandpo.data.prompts import build_prompts, date_of, reference_answer
from bandpo.data.sampler import PromptSampler
from bandpo.data.sources import load_problems
from bandpo.disk.lock import only_one
from bandpo.errors import RunHalted
from bandpo.evaluation.evaluate import Task, evaluate_all
from bandpo.learner.learner import DeepSpeedLearner, UpdateResult
from bandpo.loss import PolicyLoss
from bandpo.methods.records import dump_path, recorded
from bandpo.model.agreement import TOLERANCE
from bandpo.model.examine import examine
from bandpo.model.source import ModelSource, find_model, load_tokenizer
from bandpo.model.vocabulary import examine_tokenizer
from bandpo.ranks.collectives import Ranks
from bandpo.reward import Reward, verifier_version
from bandpo.rollout.draws import Draws, Rollout, read_rollout
from bandpo.rollout.engine import Sampling
from bandpo.rollout.scoring import EngineDied, JudgedGroup, RewardDied, RewardFailed, rollout
from bandpo.rollout.seeds import Seeds
from bandpo.run.host import Host
from bandpo.run.nonfinite_guard import Refusals
from bandpo.run.probe import EXPORT_PROBE, probed, prove_weights
from bandpo.run.rehearsal import rehearse, require_room
from bandpo.run.start_point import Beginning, find_beginning
from bandpo.types import Problem, Prompt

logger = logging.getLogger(__name__)


class Job:
    """The parts of a run on one rank, ready for the loop; close it to end engine and workers."""

    def __init__(self, config: Config, host: Host | None = None, command: str = "") -> None:
        """Builds everything that can fail on bad input before anything that is expensive.

        A `host` that is given stays open when the job closes, for the next one. `command` is what
        model cards say of how the run was started.
        """
        self.started = time.time()
        self._died: set[str] = set()
        # The step whose prompts were drawn last, and the sampler's state before.
        self._drawing: tuple[int, dict[str, Any]] = (0, {})
        self.config = config
        self.folder = Path(config.run.dir)
        loss: PolicyLoss = instantiate(config.method.loss)
        if config.rollout.lag:
            loss = dataclasses.replace(loss, max_weight=config.rollout.max_weight)
        self.advantages: Callable[..., Tensor] = instantiate(config.method.advantage)
        problems = load_problems(config.data.train)
        benchmarks = load_benchmarks(config.eval.benchmarks, _path(config.data.root))

        with ExitStack() as stack:  # what is open when something fails is closed
            self._host = host or stack.enter_context(Host())
            self.ranks = self._host.ranks
            if self.ranks.is_first:
                stack.enter_context(only_one(self.folder))
            # Two threads must not share collectives.
            self.rollout_ranks = self.ranks.apart() if config.rollout.lag else self.ranks
            beginning = find_beginning(config, self.ranks)
            checkpoint, self.start = beginning.checkpoint, beginning.step
            self.waiting = read_rollout(checkpoint.folder) if checkpoint else None
            model = _model(config, self.ranks)
            lm_config = model.config(config.model.trust_remote_code)
            notes = examine(model.path, lm_config, config)
            self.tokenizer = load_tokenizer(model, config.model.trust_remote_code)
            date = date_of(self.tokenizer, beginning.state.get("prompt_date"))
            self._prompt_date = self.ranks.gather(date)[0]
            dropped = self._take_prompts(problems)
            if checkpoint:
                self.sampler.load_state_dict(beginning.state["sampler"])
            limit = config.data.max_prompt_tokens
            self.tasks = [
                Task.prepare(b, self.tokenizer, config.data.template, limit, self._prompt_date)
                for b in benchmarks
            ]
            prompts = chain(self.sampler.prompts, *(task.prompts for task in self.tasks))
            notes += examine_tokenizer(model.path, lm_config, self.tokenizer, prompts)
            self._served_length = require_room(config, model, self.sampler.prompts, self.tasks)
            self.reward: Reward = instantiate(config.reward)
            stack.callback(lambda: self.reward.close())  # the one in use at the end
            answer = reference_answer(self._first_prompt, self.tokenizer)
            notes += rehearse(
                config, model, self.tokenizer, self.reward, answer, command, self.ranks
            )
            kept = beginning.prepare_folder() if self.ranks.is_first else None
            self.tracker = self._tracker(beginning)
            stack.callback(self.tracker.close)
            self._announce(dropped, [*beginning.notes, *([kept] if kept else []), *notes])
            # The learner first: vLLM would make a process group of size 1, which DeepSpeed rejects.
            self.learner = DeepSpeedLearner(
                config.learner,
                config.model,
                model.path,
                loss,
                self.ranks,
                temperature=config.rollout.temperature,
            )
            if checkpoint:
                self.learner.load(checkpoint.folder, beginning.state["ranks"])
            self.checkpoints = Checkpoints(
                config,
                self.ranks,
                self.tracker,
                self.learner,
                self.tokenizer,
                sample=probed(answer, 1, min(EXPORT_PROBE, self._served_length)),
                facts={"train problems": len(self.sampler)},
                command=command,
                begun_from=checkpoint,
            )
            self._model = model
            self.engine = self._host.engine(config, model)
            self._describe(dropped)
            self._refusals = Refusals(
                config.trainer.max_skipped_updates, self.folder, self.ranks, self.tracker.say
            )
            alarms = [CutOff(), *(instantiate(alarm) for alarm in config.alarms)]
            self._alarms = AlarmPanel(alarms, self.tracker.past(), self.tracker.say)
            # The first sync hands the engine these weights under the version that they have.
            self._version = int(beginning.state["weight_version"]) - 1
            self._restore_random_state(checkpoint)
            self._open = stack.pop_all()

    def _take_prompts(self, problems: Sequence[Problem]) -> int:
        """Makes the sampler; returns how many problems were dropped for their length."""
        data, date = self.config.data, self._prompt_date
        limit, overlong = data.max_prompt_tokens, data.overlong_prompts
        prompts, dropped = build_prompts(
            problems, self.tokenizer, data.template, limit, overlong, date
        )
        self._first_prompt = prompts[0]
        self.sampler = PromptSampler(prompts, self.config.seed)
        self.sampler.require(self.config.rollout.prompts_per_step)
        return len(dropped)

    def _restore_random_state(self, checkpoint: Checkpoint | None) -> None:
        """Last, since building draws; a rank that the checkpoint does not know starts afresh."""
        seed_everything(self.config.seed)
        if checkpoint and (file := random_file(checkpoint.folder, self.ranks.rank)).exists():
            restore_random_state(json.loads(file.read_text(encoding="utf-8")))

    def _tracker(self, beginning: Beginning) -> Tracker:
        config = self.config
        return Tracker(
            self.folder,
            active=self.ranks.is_first,
            steps=config.trainer.steps,
            trackers=config.tracking.trackers,
            project=config.tracking.project,
            name=config.run.name,
            settings=config.model_dump(mode="json"),
            ids=beginning.tracker_ids,
            after=self.start,
        )

    def _announce(self, dropped: int, notes: Sequence[str]) -> None:
        config, say = self.config, self.tracker.say
        for note in notes:
            say(note)
        if dropped:
            say(f"dropped {dropped} prompts longer than {config.data.max_prompt_tokens} tokens")
        if config.model.dtype == "bfloat16" and config.learner.zero_stage < 2:
            say(
                f"learner.zero_stage={config.learner.zero_stage} adds up bfloat16 gradients of "
                "micro-batches in bfloat16, which loses small ones; learner.zero_stage=2 does not"
            )
        if self.start:
            say(f"resuming {config.run.name} after step {self.start}")
        say(
            f"{config.method.name} on {config.model.path}: "
            f"{config.rollout.prompts_per_step} prompts × {config.rollout.group_size} samples "
            f"a step, {self.ranks.size} rank(s), "
            f"engine {config.rollout.engine['_target_'].rpartition('.')[2]} (starting)"
        )

    def _describe(self, dropped: int) -> None:
        parameters = self.learner.lm.parameters()
        self.tracker.describe(
            engine=self.engine.name.split("_")[0],
            rollout=self.engine.name,
            learner="deepspeed",
            verifier=verifier_version(),
            method=self.config.method.name,
            ranks=self.ranks.size,
            model=str(self.config.model.path),
            parameters=sum(getattr(p, "ds_numel", p.numel()) for p in parameters),
            train_problems=len(self.sampler),
            dropped_prompts=dropped,
            resumed_from_step=self.start,
            prompt_date=self._prompt_date,
        )

    @property
    def sampling(self) -> Sampling:
        """How training samples its groups."""
        rollout = self.config.rollout
        return Sampling(
            n=rollout.group_size,
            temperature=rollout.temperature,
            top_p=rollout.top_p,
            top_k=rollout.top_k,
            max_tokens=rollout.max_tokens,
        )

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

    def draws(self, step: int) -> Draws:
        """The prompts of a step, to be drawn and judged."""
        self._drawing = step, self.sampler.state_dict()
        settings = self.config.rollout
        seeds = Seeds(self.config.seed, step, settings.group_size)
        return Draws(settings, self.sampler, seeds, self.rollout_ranks)

    def rollout(self, prompts: Sequence[Prompt]) -> list[JudgedGroup]:
        """The judged groups of this rank's prompts.

        An engine or a reward that dies on any rank is replaced, once a run; prompts carry their
        seeds, so that the groups are those that it would have given. The run ends where that
        cannot be done: with `rollout.lag` beside the learner's updates, and where ranks share an
        engine, since the others wait in it for the one that failed. Raises RewardFailed on every
        rank where a reward fails again, or gives what is no score, on any.
        """
        judged: list[JudgedGroup] | None = None
        while True:
            death: EngineDied | RewardDied | RewardFailed | None = None
            if judged is None:
                try:
                    judged = rollout(self.engine, self.reward, prompts, self.sampling)
                except EngineDied as error:
                    if not self._replaces:
                        raise
                    death = error
                except RewardDied as error:
                    again = "reward" in self._died or not self._replaces
                    death = RewardFailed(str(error)) if again else error
                except RewardFailed as error:
                    death = error
            if not self.rollout_ranks.any(judged is None):
                assert judged is not None
                return judged
            self.rollout_ranks.raise_any(death if isinstance(death, RewardFailed) else None)
            if self.ranks.any(isinstance(death, EngineDied)):
                self._replace("engine", death)
            if isinstance(death, RewardDied):
                self._replace("reward", death)

    @property
    def _replaces(self) -> bool:
        """Whether the ranks can stop together to replace what has died."""
        rollout = self.config.rollout
        return rollout.lag == 0 and rollout.engine.get("tensor_parallel_size", 1) == 1

    @contextmanager
    def rescue(
        self,
        step: int,
        metrics: Mapping[str, float] | None = None,
        waiting: Rollout | None = None,
    ) -> Iterator[None]:
        """A reward that fails inside ends the run, but not before what was trained is saved.

        `step` is the last one whose updates are done; its `metrics` are given where they have not
        been logged, and `waiting` as to `save`.
        """
        try:
            yield
        except RewardFailed as error:
            if metrics is not None:
                self.tracker.log(step, metrics)
            unsaved = step > self.checkpoints.newest
            if step == 0 or (unsaved and not self.save(step, metrics or {}, waiting)):
                raise
            raise RewardFailed(
                f"{error}. What was trained up to step {step} is saved: fix the reward and start "
                "the run again, which goes on from there"
            ) from error

    def _replace(self, part: Literal["engine", "reward"], death: Exception | None) -> None:
        """Starts an engine (collective, with the current weights and a probe) or a reward anew.

        Raises the cause of the death if it is the second one.
        """
        if part in self._died:
            raise RuntimeError(f"the {part} died a second time") from death
        self._died.add(part)
        logger.warning("the %s died and is started once more: %s", part, death or "on another rank")
        if part == "reward":
            with suppress(Exception):  # what is dead may not be able to close either
                self.reward.close()
            self.reward = instantiate(self.config.reward)
            return
        self._host.bury_engine()
        self.engine = self._host.engine(self.config, self._model)
        self._version -= 1  # the same weights are sent once more
        self.sync()

    def batches(self, judged: Sequence[JudgedGroup], step: int) -> list[list[Sample]]:
        """This rank's part of the minibatches of a step's updates.

        `judged` are all ranks' groups: the minibatches are those of one rank, whatever the number
        of ranks, and each is dealt so that the ranks finish together.
        """
        usable = [item for item in judged if item.usable]
        rewards = torch.tensor([item.rewards for item in usable]).reshape(-1, self.sampling.n)
        advantages = self.advantages(rewards).tolist()

        @cache
        def sample(group: int, index: int) -> Sample:
            made = Sample.of(usable[group].group, index, advantages[group][index])
            if self.config.rollout.lag and made.weight_version != self._version:
                made.take_behaviour_policy()
            return made

        learner = self.config.learner
        places = [[(i, j) for j in range(self.sampling.n)] for i in range(len(usable))]
        batches = []
        for epoch in range(learner.epochs_per_rollout):
            seed = f"{self.config.seed}/{step}/{epoch}"
            for members in minibatches(places, learner.updates_per_rollout, seed):
                costs = [self.learner.cost(usable[i].group.length(j)) for i, j in members]
                mine = deal(costs, self.ranks.size)[self.ranks.rank]
                batches.append([sample(*members[k]) for k in mine])
        return batches

    @property
    def trace_file(self) -> Path | None:
        """Where this rank's profiler trace goes with `trainer.profile`."""
        wanted = self.config.trainer.profile
        return self.folder / "profile" / f"rank{self.ranks.rank}.json.gz" if wanted else None

    def recorded(self, batches: Sequence[list[Sample]], step: int) -> Iterable[list[Sample]]:
        """The minibatches; every so many steps tokens/ gets what the loss sees of them."""
        every = self.config.trainer.dump_tokens_every
        if every == 0 or step % every:
            return batches
        path = dump_path(self.folder, step, self.ranks.rank)
        return recorded(batches, path, self.learner.observers)

    def update(self, batch: Sequence[Sample], step: int) -> UpdateResult | None:
        """One optimizer update; raises RunHalted when too many in a row had to be refused."""
        result = self.learner.update(batch, step)
        self._refusals.note(result, batch, step)
        return result

    def check_alarms(self, step: int, metrics: Mapping[str, float]) -> None:
        """Raises RunHalted on every rank where the first hears an alarm that stops the run."""
        halt = None
        if self.ranks.is_first:
            try:
                self._alarms.check(step, metrics)
            except RunHalted as error:
                halt = error
        if halt := self.ranks.gather(halt)[0]:
            raise halt

    def sync(self, judged: Sequence[JudgedGroup] = ()) -> dict[str, float]:
        """Sends the learner's weights to the engine and proves that they arrived.

        A few samples of the step, or the first problem's reference answer, are scored by both.
        Raises RuntimeError where they differ by more than the tolerance.
        """
        self.engine.wake()
        self._version += 1
        self.engine.load_weights(self.learner.weights(), self._version)
        groups = [item.group for item in self.ranks.share(judged)] or [
            reference_answer(self._first_prompt, self.tokenizer)
        ]
        group = groups[self._version % len(groups)]
        tolerance = self.config.rollout.probe_tolerance or TOLERANCE[self.config.model.dtype]
        gap = prove_weights(
            self.engine, self.learner, group, self.ranks, tolerance, self._served_length
        )
        return {"sync/probe_logprob_max": gap}

    def evaluate(self, step: int) -> dict[str, float]:
        """Every benchmark at this step; samples and summary.json go to eval/<step>/."""
        settings = self.config.eval
        sampling = Sampling(
            n=settings.n,
            temperature=settings.temperature,
            top_p=settings.top_p,
            max_tokens=settings.max_tokens,
        )
        summaries = evaluate_all(
            self.engine,
            self.reward,
            self.tasks,
            sampling,
            settings.seed,
            self.folder / "eval" / f"{step:06d}",
            model={
                "run": self.config.run.name,
                "step": step,
                "dtype": self.config.model.dtype,
            },
            scoring=self.config.reward,
            # Samples of a step that is redone may be those of other weights.
            resume=False,
            ranks=self.ranks,
            give_up=logger.warning,
        )
        return {name: value for s in summaries for name, value in s.scalars().items()}

    def save(
        self,
        step: int,
        metrics: Mapping[str, float],
        waiting: Rollout | None = None,
    ) -> bool:
        """Writes a checkpoint of this step; whether it could (`Checkpoints.save`)."""
        state = self._state(step)
        if waiting is None and self._drawing[0] == step + 1:  # it is drawn again
            state["sampler"] = self._drawing[1]
        return self.checkpoints.save(state, metrics, waiting)

    def _state(self, step: int) -> dict[str, Any]:
        """What the loop needs to go on after a step, as plain JSON values."""
        return {
            "step": step,
            "weight_version": self._version,
            "ranks": self.ranks.size,
            "sampler": self.sampler.state_dict(),
            "config_hash": config_hash(self.config),
            "trackers": self.tracker.ids(),
            "prompt_date": self._prompt_date,
        }


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


def _model(config: Config, ranks: Ranks) -> ModelSource:
    """The policy to start from; the first rank makes what is not yet in the cache."""
    model = config.model
    if ranks.is_first:
        find_model(model.path, model.seed, model.allow_pickle)
    ranks.barrier()
    return find_model(model.path, model.seed, model.allow_pickle)
