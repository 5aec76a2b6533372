"""Evaluate one policy on one benchmark: the same code for `bandpo eval` and inside training."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bandpo.data.benchmarks import Benchmark
from bandpo.data.prompts import (
    PromptTemplate,
    build_prompts,
    date_of,
    prompt_fingerprint,
    prompt_template,
)
from bandpo.environment import EVALUATION_PACKAGES, package_versions
from bandpo.errors import UserError
from bandpo.evaluation.samples import ExpendableLog, Sample, SampleLog, judged
from bandpo.evaluation.summary import Summary, summarize, write_summaries
from bandpo.ranks.collectives import Alone, Ranks
from bandpo.reward import Reward
from bandpo.rollout.context import Demand
from bandpo.rollout.engine import RolloutEngine, Sampling
from bandpo.rollout.scoring import RewardFailed, scored_groups
from bandpo.rollout.seeds import Seeds
from bandpo.types import Prompt

OCCASION = "eval"
"""Of the sampling seeds: those of a run's evaluations are the same at every step."""


@dataclass(frozen=True)
class Task:
    """A benchmark as one model sees it.

    `prompt_date` is what its chat template was told, where it asks for the date.
    """

    benchmark: Benchmark
    prompts: tuple[Prompt, ...]
    template: PromptTemplate
    prompt_sha256: str
    prompt_date: str | None = None

    @classmethod
    def prepare(
        cls,
        benchmark: Benchmark,
        tokenizer: Any,
        template: str,
        max_prompt_tokens: int,
        date: str | None = None,
    ) -> Task:
        """Renders every problem; one that does not fit raises `UserError`, none is dropped.

        `date` is what an earlier part of the evaluation told the chat template.
        """
        text = prompt_template(template)
        prompts, _ = build_prompts(
            benchmark.problems, tokenizer, text, max_prompt_tokens, overlong="error", date=date
        )
        told = date_of(tokenizer, date)
        return cls(benchmark, tuple(prompts), text, prompt_fingerprint(prompts), told)


def demands_of(tasks: Sequence[Task], max_tokens: int) -> list[Demand]:
    """What each benchmark asks of a model's context."""
    return [
        Demand.of(f"benchmark {task.benchmark.name}", task.prompts, "eval.max_tokens", max_tokens)
        for task in tasks
    ]


Progress = Callable[[str, int, int], None]
"""Told on every rank about its own share: benchmark, problems done, problems to do."""


def _silent(benchmark: str, done: int, total: int) -> None:
    pass


def evaluate(
    engine: RolloutEngine,
    reward: Reward,
    task: Task,
    sampling: Sampling,
    seed: int,
    folder: Path,
    *,
    model: Mapping[str, Any],
    scoring: Mapping[str, Any],
    resume: bool = True,
    ranks: Ranks | None = None,
    progress: Progress = _silent,
    give_up: Callable[[str], None] | None = None,
    seeds: Seeds | None = None,
) -> Summary:
    """Samples `sampling.n` completions a problem, judges them and sums up; same on every rank.

    Samples go to `folder/<benchmark>.jsonl` as they finish. With `resume`, groups already there
    are kept, and `UserError` is raised if they were made with other settings; without, they are
    forgotten. `model` identifies the weights in the settings, `scoring` the reward. Samples that
    cannot be written raise OSError, or are given up where `give_up` is there to be told. `seeds`
    are those of an evaluation that this is a part of.
    """
    ranks = ranks or Alone()
    settings = evaluation_settings(engine, task, sampling, seed) | {
        "model": dict(model),
        "scoring": dict(scoring),
    }
    if len(set(ranks.gather(task.prompt_sha256))) > 1:
        raise UserError(f"{task.benchmark.name}: the ranks have other prompts; start again")
    path = folder / f"{task.benchmark.name}.jsonl"
    log = SampleLog(path) if give_up is None else ExpendableLog(path, give_up)
    done = _done_before(log, settings, sampling.n, resume, ranks)
    _refuse_other_problems(path, done, task.prompts)
    seeds = seeds or Seeds(seed, OCCASION, sampling.n)
    seeded = [
        dataclasses.replace(prompt, seed=seeds.take(f"{task.benchmark.name}/{prompt.problem.id}"))
        for prompt in task.prompts
    ]
    prompts = [prompt for prompt in seeded if prompt.problem.id not in done]
    mine = prompts[ranks.rank :: ranks.size]
    fresh: dict[str, list[Sample]] = {}
    own_log = log.of_rank(ranks.rank)
    failure: RewardFailed | None = None
    try:
        for item in scored_groups(engine, reward, mine, sampling):
            group = judged(item.group, item.scores)
            own_log.append(group)
            fresh[group[0].problem_id] = group
            progress(task.benchmark.name, len(fresh), len(mine))
    except RewardFailed as error:
        failure = error
    if failed := [error for error in ranks.gather(failure) if error]:
        raise failed[0]
    for part in _taken_over(log, fresh, ranks):
        done |= part
    groups = [done[prompt.problem.id] for prompt in task.prompts]
    return summarize(task.benchmark.name, settings, groups, task.benchmark.warnings)


def evaluate_all(
    engine: RolloutEngine,
    reward: Reward,
    tasks: Sequence[Task],
    sampling: Sampling,
    seed: int,
    folder: Path,
    *,
    model: Mapping[str, Any],
    scoring: Mapping[str, Any],
    resume: bool = True,
    ranks: Ranks | None = None,
    progress: Progress = _silent,
    give_up: Callable[[str], None] | None = None,
) -> list[Summary]:
    """`evaluate` on several benchmarks, and `summary.json` with all of them."""
    ranks = ranks or Alone()
    seeds = Seeds(seed, OCCASION, sampling.n)  # no two prompts share one
    summaries = [
        evaluate(
            engine,
            reward,
            task,
            sampling,
            seed,
            folder,
            model=model,
            scoring=scoring,
            resume=resume,
            ranks=ranks,
            progress=progress,
            give_up=give_up,
            seeds=seeds,
        )
        for task in tasks
    ]
    if ranks.rank == 0 and summaries:
        try:
            write_summaries(folder, summaries)
        except OSError as error:
            if give_up is None:
                raise
            give_up(f"the summary in {folder} is not kept: {error}")
    return summaries


def evaluation_settings(
    engine: RolloutEngine,
    task: Task,
    sampling: Sampling,
    seed: int,
) -> dict[str, Any]:
    """What the numbers depend on besides model and reward."""
    return {
        "benchmark": task.benchmark.name,
        "origin": task.benchmark.origin,
        "dataset_sha256": task.benchmark.sha256,
        "problems": len(task.prompts),
        **dataclasses.asdict(sampling),
        "seed": seed,
        "template": task.template.name,
        "prompt_sha256": task.prompt_sha256,
        **({"prompt_date": task.prompt_date} if task.prompt_date else {}),
        "engine": engine.name,
        "versions": package_versions(EVALUATION_PACKAGES),
    }


def _done_before(
    log: SampleLog, settings: Mapping[str, Any], n: int, resume: bool, ranks: Ranks
) -> dict[str, list[Sample]]:
    """What rank 0 finds on the disk, known to every rank before any of them writes."""
    done: dict[str, list[Sample]] = {}
    if ranks.rank == 0:
        if resume:
            done = log.resume(settings, n)
        else:
            log.restart(settings)
    first: dict[str, list[Sample]] = ranks.gather(done)[0]
    return first


def _refuse_other_problems(
    path: Path, done: Mapping[str, list[Sample]], prompts: Sequence[Prompt]
) -> None:
    """Raises UserError where samples kept under a problem's id answer another problem."""
    for prompt in prompts:
        if prompt.problem.id not in done:
            continue
        kept = done[prompt.problem.id][0]
        if (kept.prompt, kept.answer) != (prompt.text, prompt.problem.answer):
            raise UserError(
                f"{path} holds samples of another problem under the id {prompt.problem.id!r}: "
                "prompt or reference answer changed; choose another folder, or delete this one"
            )


def _taken_over(
    log: SampleLog, fresh: dict[str, list[Sample]], ranks: Ranks
) -> list[dict[str, list[Sample]]]:
    """All ranks' new groups; rank 0 moves the others' into the one file of the benchmark."""
    parts: list[dict[str, list[Sample]]] = ranks.gather(fresh)
    if ranks.rank == 0 and ranks.size > 1:
        for part in parts[1:]:
            for group in part.values():
                log.append(group)
        log.drop_other_ranks()
    return parts
