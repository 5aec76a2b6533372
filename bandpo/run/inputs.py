"""The inputs of a run, found and checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from bandpo.config.schema import Config
from bandpo.config.sections.model import ModelConfig
from bandpo.config.sections.sampling import stop_ids
from bandpo.data.benchmarks import Benchmark
from bandpo.data.prompts import date_of, set_chat_template
from bandpo.evaluation.evaluate import Task, demands_of
from bandpo.evaluation.summary import require_logged
from bandpo.model.features import examine
from bandpo.model.generation import generation_settings
from bandpo.model.source import ModelSource, find_model, load_tokenizer
from bandpo.model.vocabulary import examine_tokenizer, require_known_stops
from bandpo.ranks.collectives import Ranks
from bandpo.rollout.context import Demand, context_length, require_context
from bandpo.run.host import served_length
from bandpo.run.start_point import StartPoint, find_start_point
from bandpo.run.training_prompts import TrainingPrompts
from bandpo.types import Problem


@dataclass(frozen=True)
class Inputs:
    """Where a run starts, its model's files and tokenizer, and its prompts as the model sees them.

    `context` is the longest sequence [tokens] that the engine must take; `notes` are for the user.
    """

    start: StartPoint
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
    """Finds and checks everything that a run starts from; collective.

    Raises UserError for a checkpoint, a model or data that it cannot use.
    """
    data, trust = config.data, config.model.trust_remote_code
    names = [benchmark.name for benchmark in benchmarks]
    require_logged("trainer.keep_best", config.trainer.keep_best, names, config.eval.n)
    start = find_start_point(config, ranks)
    model = _model(config.model, ranks)
    lm_config = model.config(trust)
    notes = examine(model.path, lm_config, config)
    tokenizer = load_tokenizer(model, trust)
    set_chat_template(tokenizer, data.chat_template)
    date = ranks.gather(date_of(tokenizer, start.state.get("prompt_date")))[0]
    prompts = TrainingPrompts(problems, tokenizer, data, config.rollout, config.seed, date)
    if start.checkpoint:
        prompts.resume(start.state["sampler"], start.checkpoint.folder)
    tasks = tuple(
        Task.prepare(benchmark, tokenizer, prompts.prompting, data.max_prompt_tokens, date)
        for benchmark in benchmarks
    )
    shown = [*prompts.all, *chain.from_iterable(task.prompts for task in tasks)]
    notes += examine_tokenizer(model.path, lm_config, tokenizer, shown, config.rollout.stop)
    require_known_stops(stop_ids(config.rollout.stop), lm_config, "rollout.stop")
    require_known_stops(stop_ids(config.eval.stop or ()), lm_config, "eval.stop")
    notes += generation_settings(model.path).unused()
    notes += prompts.prompting.notes(tokenizer, shown)
    trained = Demand.of("data.train", prompts.all, "rollout.max_tokens", config.rollout.max_tokens)
    demands = [trained, *demands_of(tasks, config.eval.max_tokens)]
    limit = context_length(lm_config)
    require_context(f"model.path={model.spec}", limit, demands, "data.max_prompt_tokens")
    context = served_length(config, model)
    return Inputs(start, model, tokenizer, date, prompts, tasks, context, tuple(notes))


def _model(model: ModelConfig, ranks: Ranks) -> ModelSource:
    """The policy to start from; the first rank makes it if it is not in the cache yet."""
    if ranks.is_first:
        find_model(model.path, model.seed, model.allow_pickle)
    ranks.barrier()
    return find_model(model.path, model.seed, model.allow_pickle)
