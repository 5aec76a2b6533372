"""What a run reads before it loads anything: its checkpoint, model, tokenizer and prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from bandpo.config.schema import Config, ModelConfig
from bandpo.data.benchmarks import Benchmark
from bandpo.data.prompts import date_of
from bandpo.evaluation.evaluate import Task
from bandpo.model.examine import examine
from bandpo.model.source import ModelSource, find_model, load_tokenizer
from bandpo.model.vocabulary import examine_tokenizer
from bandpo.ranks.collectives import Ranks
from bandpo.run.rehearsal import require_room
from bandpo.run.start_point import Beginning, find_beginning
from bandpo.run.training_prompts import TrainingPrompts
from bandpo.types import Problem


@dataclass(frozen=True)
class Inputs:
    """Where the run begins, the policy's files and tokenizer, and the prompts as it sees them.

    `context` is the longest sequence [tokens] that the engine must take; `notes` are for the user.
    """

    beginning: Beginning
    model: ModelSource
    tokenizer: Any
    prompt_date: str | None
    prompts: TrainingPrompts
    tasks: tuple[Task, ...]
    context: int
    notes: tuple[str, ...]


def read_inputs(
    config: Config, problems: Sequence[Problem], benchmarks: Sequence[Benchmark], ranks: Ranks
) -> Inputs:
    """Finds and checks everything that a run reads; collective.

    Raises UserError for a checkpoint, a model or data that it cannot use.
    """
    data, trust = config.data, config.model.trust_remote_code
    beginning = find_beginning(config, ranks)
    model = _model(config.model, ranks)
    lm_config = model.config(trust)
    notes = examine(model.path, lm_config, config)
    tokenizer = load_tokenizer(model, trust)
    date = ranks.gather(date_of(tokenizer, beginning.state.get("prompt_date")))[0]
    prompts = TrainingPrompts(problems, tokenizer, data, config.rollout, config.seed, date)
    if beginning.checkpoint:
        prompts.resume(beginning.state["sampler"])
    tasks = tuple(
        Task.prepare(benchmark, tokenizer, data.template, data.max_prompt_tokens, date)
        for benchmark in benchmarks
    )
    shown = chain(prompts.all, *(task.prompts for task in tasks))
    notes += examine_tokenizer(model.path, lm_config, tokenizer, shown)
    context = require_room(config, model, prompts.all, tasks)
    return Inputs(beginning, model, tokenizer, date, prompts, tasks, context, tuple(notes))


def _model(model: ModelConfig, ranks: Ranks) -> ModelSource:
    """The policy to start from; the first rank makes it where it is not yet in the cache."""
    if ranks.is_first:
        find_model(model.path, model.seed, model.allow_pickle)
    ranks.barrier()
    return find_model(model.path, model.seed, model.allow_pickle)
