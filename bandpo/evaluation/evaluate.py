"""Evaluate one policy on one benchmark: the same code for `bandpo eval` and inside training."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from bandpo.data.benchmarks import Benchmark
from bandpo.data.prompting.template import prompt_template
from bandpo.data.prompts import Prompting, build_prompts, date_of, prompt_fingerprint
from bandpo.environment import EVALUATION_PACKAGES, package_versions
from bandpo.errors import UserError
from bandpo.evaluation.measures.consensus import Equal
from bandpo.evaluation.samples import samples_of
from bandpo.evaluation.store import Groups, SampleLog, Store
from bandpo.evaluation.summary import Summary, summarize
from bandpo.ranks.collectives import Alone, Ranks
from bandpo.reward import Reward, verifier_version
from bandpo.rollout.context import Demand
from bandpo.rollout.engine import RolloutEngine, Sampling
from bandpo.rollout.scoring import RewardFailed, scored_groups
from bandpo.rollout.seeds import Seeds
from bandpo.types import Prompt

OCCASION = "eval"
"""Names the sampling seeds: those of a run's evaluations are the same at every step."""


@dataclass(frozen=True)
class Task:
    """A benchmark as one model sees it.

    `prompt_date` is the date that its prompts show, where the chat template asks for one.
    """

    benchmark: Benchmark
    prompts: tuple[Prompt, ...]
    prompting: Prompting
    prompt_sha256: str
    prompt_date: str | None = None

    @classmethod
    def prepare(
        cls,
        benchmark: Benchmark,
        tokenizer: Any,
        prompting: Prompting | str,
        max_prompt_tokens: int,
        date: str | None = None,
        choice_template: str = "choice",
    ) -> Task:
        """Renders every problem; one that does not fit raises `UserError`, none is dropped.

        `date` is the date that the prompts of an interrupted evaluation show.
        """
        how = prompting_of(benchmark, prompting, choice_template)
        prompts, _ = build_prompts(
            benchmark.problems, tokenizer, how, max_prompt_tokens, overlong="error", date=date
        )
        shown = date_of(tokenizer, date)
        return cls(benchmark, tuple(prompts), how, prompt_fingerprint(prompts), shown)

    def seeded(self, seeds: Seeds) -> list[Prompt]:
        """The prompts, each with a sampling seed of its own."""
        name = self.benchmark.name
        return [
            dataclasses.replace(prompt, seed=seeds.take(f"{name}/{prompt.problem.id}"))
            for prompt in self.prompts
        ]


def prompting_of(
    benchmark: Benchmark, prompting: Prompting | str, choice_template: str
) -> Prompting:
    """How a benchmark's problems are put.

    Multiple-choice problems have `choice_template`, which asks for a letter.
    """
    how = prompting if isinstance(prompting, Prompting) else Prompting.of(prompting)
    if benchmark.multiple_choice:
        how = dataclasses.replace(how, template=prompt_template(choice_template))
    return how


def demands_of(tasks: Sequence[Task], max_tokens: int) -> list[Demand]:
    """The tokens that each benchmark needs of a model's context."""
    return [
        Demand.of(f"benchmark {task.benchmark.name}", task.prompts, "eval.max_tokens", max_tokens)
        for task in tasks
    ]


Progress = Callable[[str, int, int], None]
"""Called on every rank about its own share: benchmark, problems done, problems to do."""


def _silent(benchmark: str, done: int, to_do: int) -> None:
    pass


@dataclass(frozen=True)
class Evaluator:
    """Samples `sampling.n` completions per problem, scores them and summarizes; collective.

    `model` and `scoring` identify weights and reward in the settings of the samples. Every rank
    evaluates a share of the problems; the first gathers and summarizes them. `equal` compares
    answers for cons@k; `protocol` names the preset and what departs from it.
    """

    engine: RolloutEngine
    reward: Reward
    sampling: Sampling
    seed: int
    model: Mapping[str, Any]
    scoring: Mapping[str, Any]
    ranks: Ranks = field(default_factory=Alone)
    equal: Equal | None = None
    protocol: Mapping[str, Any] | None = None

    def run(
        self, tasks: Sequence[Task], store: Store, on_progress: Progress = _silent
    ) -> list[Summary]:
        """The summary of every benchmark, on the first rank; samples and summaries go to `store`.

        Groups that the store already holds are kept. Raises `UserError` where they were made with
        other settings or for other problems.
        """
        seeds = Seeds(self.seed, OCCASION, self.sampling.n)  # no two prompts share one
        found = [self._summary(task, store, seeds, on_progress) for task in tasks]
        summaries = [summary for summary in found if summary is not None]
        if summaries:
            store.write(summaries)
        return summaries

    def settings(self, task: Task) -> dict[str, Any]:
        """Everything that the numbers depend on."""
        return {
            "benchmark": task.benchmark.name,
            "origin": task.benchmark.origin,
            "dataset_sha256": task.benchmark.sha256,
            "problems": len(task.prompts),
            **self.sampling.settings(),
            "seed": self.seed,
            **task.prompting.facts(),
            "prompt_sha256": task.prompt_sha256,
            **({"prompt_date": task.prompt_date} if task.prompt_date else {}),
            "engine": self.engine.name,
            "versions": package_versions(EVALUATION_PACKAGES),
            "model": dict(self.model),
            "scoring": dict(self.scoring),
            "verifier": verifier_version()["version"],
        }

    def _summary(
        self, task: Task, store: Store, seeds: Seeds, on_progress: Progress
    ) -> Summary | None:
        settings, name = self.settings(task), task.benchmark.name
        if len(set(self.ranks.gather(task.prompt_sha256))) > 1:
            raise UserError(f"{name}: the ranks have other prompts; start again")
        log = store.log(name)
        # Every rank knows what rank 0 finds on the disk before any of them writes.
        begun = store.begin(log, settings, self.sampling.n) if self.ranks.rank == 0 else {}
        kept: Groups = self.ranks.gather(begun)[0]
        _refuse_other_problems(log.path, kept, task.prompts)
        prompts = [p for p in task.seeded(seeds) if p.problem.id not in kept]
        groups = kept | self._sample(prompts, log, partial(on_progress, name))
        if self.ranks.rank > 0:
            return None
        ordered = [groups[prompt.problem.id] for prompt in task.prompts]
        warnings = task.benchmark.warnings
        return summarize(name, settings, ordered, warnings, self.equal, self.protocol)

    def _sample(
        self, prompts: Sequence[Prompt], log: SampleLog, on_progress: Callable[[int, int], None]
    ) -> Groups:
        """The groups of all prompts, on rank 0, which logs them; each rank samples its share."""
        mine = prompts[self.ranks.rank :: self.ranks.size]
        own_log = log.of_rank(self.ranks.rank)
        own: Groups = {}
        failure: RewardFailed | None = None
        try:
            for item in scored_groups(self.engine, self.reward, mine, self.sampling):
                group = samples_of(item.group, item.scores)
                own_log.append(group)
                own[group[0].problem_id] = group
                on_progress(len(own), len(mine))
        except RewardFailed as error:
            failure = error
        if failed := [error for error in self.ranks.gather(failure) if error]:
            raise failed[0]
        shares: list[Groups] = self.ranks.gather_to_first(own)
        if self.ranks.rank == 0 and self.ranks.size > 1:
            for group in chain.from_iterable(share.values() for share in shares[1:]):
                log.append(group)
            log.drop_other_ranks()
        return {problem: group for share in shares for problem, group in share.items()}


def _refuse_other_problems(path: Path, groups: Groups, prompts: Sequence[Prompt]) -> None:
    """Raises UserError where samples kept under a problem's id answer another problem."""
    for prompt in prompts:
        if prompt.problem.id not in groups:
            continue
        kept = groups[prompt.problem.id][0]
        if (kept.prompt, kept.answer) != (prompt.text, prompt.problem.answer):
            raise UserError(
                f"{path} holds samples of another problem under the id {prompt.problem.id!r}: "
                "prompt or reference answer changed; name another folder (out=…), or sample "
                "anew in this one (eval.resume=false)"
            )
