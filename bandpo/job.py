"""Builds the parts of a training job from its configuration, in the order that they need."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from itertools import chain, cycle, islice
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from torch import Tensor

from bandpo.batching import Sample, minibatches, samples_of
from bandpo.config import Config
from bandpo.data.benchmarks import load_benchmarks
from bandpo.data.prompts import build_prompts
from bandpo.data.sampler import PromptSampler
from bandpo.data.sources import load_problems
from bandpo.evaluation.evaluate import Task, evaluate_all
from bandpo.evaluation.model import ModelSource, find_model, load_tokenizer
from bandpo.host import Host
from bandpo.learner.checkpoint import Checkpoint, find_checkpoint, write_checkpoint
from bandpo.learner.deepspeed import DeepSpeedLearner
from bandpo.learner.ranks import Ranks
from bandpo.loss import PolicyLoss
from bandpo.replay.records import dump_path, recorded
from bandpo.reward import Reward, verifier_version
from bandpo.rollout.engine import Sampling
from bandpo.rollout.judge import JudgedGroup, read_groups, write_groups
from bandpo.rollout.seeds import prompt_seed
from bandpo.tracking import Tracker
from bandpo.types import Completion, Group, Problem, Prompt

PROBE_SAMPLES = 4
PROBE_TOKENS = 64
PROBE_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.3}


class Job:
    """The parts of a run on one rank, ready for the loop; close it to end engine and workers."""

    def __init__(self, config: Config, host: Host | None = None) -> None:
        """Builds everything that can fail on bad input before anything that is expensive.

        A `host` that is given stays open when the job closes, for the next one.
        """
        self.config = config
        self.folder = Path(config.run.dir)
        torch.manual_seed(config.seed)
        loss: PolicyLoss = instantiate(config.method.loss)
        if config.rollout.lag:
            loss = dataclasses.replace(loss, max_weight=config.rollout.max_weight)
        self.advantages: Callable[..., Tensor] = instantiate(config.method.advantage)
        checkpoint = find_checkpoint(self.folder, config.trainer.resume)
        fresh: dict[str, Any] = {"step": 0, "weight_version": 0}
        state = checkpoint.state() if checkpoint else fresh
        self.start = int(state["step"])
        # The first sync sends the same weights again, and they are the same version.
        self._version = int(state["weight_version"]) - (1 if checkpoint else 0)
        self.waiting = read_groups(checkpoint.folder) if checkpoint else None
        problems = load_problems(config.data.train)
        benchmarks = load_benchmarks(config.eval.benchmarks, _path(config.data.root))

        with ExitStack() as stack:  # what is open when something fails is closed
            self._host = host or stack.enter_context(Host())
            self.ranks = self._host.ranks
            # Two threads must not share collectives.
            self.rollout_ranks = self.ranks.apart() if config.rollout.lag else self.ranks
            if self.waiting is not None:
                self.waiting = self.ranks.share(self.waiting)
            model = _model(config, self.ranks)
            self.tokenizer = load_tokenizer(model, config.model.trust_remote_code)
            dropped = self._take_prompts(problems)
            if checkpoint:
                self.sampler.load_state_dict(state["sampler"])
            limit = config.data.max_prompt_tokens
            self.tasks = [
                Task.prepare(b, self.tokenizer, config.data.template, limit) for b in benchmarks
            ]
            self.tracker = self._tracker()
            stack.callback(self.tracker.close)
            self.tracker.forget_after(self.start if checkpoint else -1)
            self._announce(dropped, resumed=checkpoint is not None)
            # The learner first: vLLM would make a process group of size 1, which DeepSpeed rejects.
            self.learner = DeepSpeedLearner(
                *(config.learner, config.model, model.path, loss, self.ranks),
                temperature=config.rollout.temperature,
            )
            if checkpoint:
                self.learner.load(checkpoint.folder)
            self.engine = self._host.engine(config, model)
            self.reward: Reward = instantiate(config.reward)
            stack.callback(self.reward.close)
            self._describe(dropped)
            self._open = stack.pop_all()

    def _take_prompts(self, problems: Sequence[Problem]) -> int:
        """Makes the sampler; returns how many problems were dropped for their length."""
        data = self.config.data
        prompts, dropped = build_prompts(
            problems, self.tokenizer, data.template, data.max_prompt_tokens, data.overlong_prompts
        )
        self._first_prompt = prompts[0]
        self.sampler = PromptSampler(prompts, self.config.seed)
        return len(dropped)

    def _tracker(self) -> Tracker:
        config = self.config
        return Tracker(
            self.folder,
            active=self.ranks.is_first,
            steps=config.trainer.steps,
            trackers=config.tracking.trackers,
            project=config.tracking.project,
            name=config.run.name,
            settings=config.model_dump(mode="json"),
        )

    def _announce(self, dropped: int, resumed: bool) -> None:
        config, say = self.config, self.tracker.say
        if dropped:
            say(f"dropped {dropped} prompts longer than {config.data.max_prompt_tokens} tokens")
        if resumed:
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

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def next_prompts(self, step: int) -> list[Prompt]:
        """This rank's share of the step's prompts, with their seeds."""
        prompts = self.sampler.next(self.config.rollout.prompts_per_step)
        return [
            dataclasses.replace(p, seed=prompt_seed(self.config.seed, step, p.problem.id))
            for p in self.ranks.share(prompts)
        ]

    def batches(self, judged: Sequence[JudgedGroup], step: int) -> list[list[Sample]]:
        """The minibatches of a step's updates: usable groups with their advantages."""
        usable = [item for item in judged if item.usable]
        rewards = torch.tensor([item.rewards for item in usable]).reshape(-1, self.sampling.n)
        advantages = self.advantages(rewards).tolist()
        groups = [samples_of(item.group, row) for item, row in zip(usable, advantages, strict=True)]
        for sample in chain.from_iterable(groups):
            if self.config.rollout.lag and sample.weight_version != self._version:
                sample.take_behaviour_policy()
        learner = self.config.learner
        return [
            batch
            for epoch in range(learner.epochs_per_rollout)
            for batch in minibatches(
                groups, learner.updates_per_rollout, f"{self.config.seed}/{step}/{epoch}"
            )
        ]

    def recorded(self, batches: Sequence[list[Sample]], step: int) -> Iterable[list[Sample]]:
        """The minibatches; every so many steps tokens/ gets what the loss sees of them."""
        every = self.config.trainer.dump_tokens_every
        if every == 0 or step % every:
            return batches
        path = dump_path(self.folder, step, self.ranks.rank)
        return recorded(batches, path, self.learner.observers)

    def sync(self, judged: Sequence[JudgedGroup] = ()) -> dict[str, float]:
        """Sends the learner's weights to the engine and proves that they arrived.

        A few samples (of the step, or the first problems' reference answers), at least one for each
        copy of the weights, are scored by both; raises RuntimeError where they differ by more than
        the tolerance.
        """
        self.engine.wake()
        self._version += 1
        self.engine.load_weights(self.learner.weights(), self._version)
        groups = [item.group for item in judged] or self._reference_answers()
        group = groups[self._version % len(groups)]
        count = max(PROBE_SAMPLES, math.ceil(self.engine.replicas / self.ranks.size))
        completions = [_cut(c, PROBE_TOKENS) for c in islice(cycle(group.completions), count)]
        probe = samples_of(
            dataclasses.replace(group, completions=tuple(completions)), [0.0] * len(completions)
        )
        theirs = self.engine.logprobs(group.prompt, completions)
        ours = self.learner.logprobs(probe)
        gap = max(
            abs(a - b) for row in zip(theirs, ours, strict=True) for a, b in zip(*row, strict=True)
        )
        gap = float(self.ranks.max(torch.tensor(gap, device=self.ranks.device)))
        tolerance = self.config.rollout.probe_tolerance or PROBE_TOLERANCE[self.config.model.dtype]
        if not gap <= tolerance:
            raise RuntimeError(
                f"after weight sync {self._version} the engine's log-probabilities differ from the "
                f"learner's by {gap:.3g}, more than {tolerance:g}: the weights did not arrive"
            )
        return {"sync/probe_logprob_max": gap}

    def _reference_answers(self) -> list[Group]:
        prompt = self._first_prompt
        tokens = tuple(self.tokenizer.encode(prompt.problem.answer, add_special_tokens=False))
        completion = Completion(prompt.problem.answer, tokens, (0.0,) * len(tokens), "stop")
        return [Group(prompt, (completion,) * PROBE_SAMPLES)]

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
        )
        return {name: value for s in summaries for name, value in s.scalars().items()}

    def save(self, step: int, waiting: Sequence[JudgedGroup] | None = None) -> Checkpoint:
        """Writes a checkpoint of this step, with the groups that wait for the next one."""
        state = {
            "step": step,
            "weight_version": self._version,
            "sampler": self.sampler.state_dict(),
            "config": "../../config.yaml",
        }

        def parts(folder: Path) -> None:
            if waiting is not None:
                write_groups(folder, self.ranks.rank, waiting)
            self.learner.save(folder)
            self.learner.save_hf(folder / "hf", self.tokenizer)

        keep = self.config.trainer.keep_checkpoints
        return write_checkpoint(self.folder / "checkpoints", state, parts, self.ranks, keep)


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


def _cut(completion: Completion, limit: int) -> Completion:
    return dataclasses.replace(
        completion,
        token_ids=completion.token_ids[:limit],
        logprobs=completion.logprobs[:limit],
    )


def _model(config: Config, ranks: Ranks) -> ModelSource:
    """The policy to start from; the first rank makes the embedded one where it is not yet made."""
    if ranks.is_first:
        find_model(config.model.path, config.model.seed)
    ranks.barrier()
    return find_model(config.model.path, config.model.seed)
