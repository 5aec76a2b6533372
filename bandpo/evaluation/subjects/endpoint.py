"""A model that is a name at an OpenAI-compatible endpoint: no weights, and mostly no tokens."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.utils import get_object

from bandpo.data.benchmarks import Benchmark, load_benchmarks
from bandpo.data.prompts import prompt_fingerprint, prompt_template
from bandpo.errors import UserError, did_you_mean, listed
from bandpo.evaluation.eval_config import EvalCommand
from bandpo.evaluation.evaluate import Task
from bandpo.evaluation.samples import prompt_date
from bandpo.evaluation.subjects.subject import Subject
from bandpo.model.source import find_model, load_tokenizer
from bandpo.redaction import redacted
from bandpo.rollout.engine import EngineSpec
from bandpo.rollout.openai.endpoint import Address, Served, served
from bandpo.rollout.openai.fields import Fields
from bandpo.rollout.openai.replies import files_of
from bandpo.types import Completion, Group, Problem, Prompt, Turn, logprob_array, token_array

KEY_ENV = "OPENAI_API_KEY"


def is_endpoint(config: EvalCommand) -> bool:
    """Whether the engine knows the model by name alone."""
    return bool(getattr(get_object(config.rollout["engine"]["_target_"]), "name_only", False))


def endpoint(config: EvalCommand) -> Subject:
    """The endpoint's model; replies of an earlier evaluation are discarded without eval.resume.

    Raises UserError for settings that cannot be, and where the endpoint does not answer or does not
    take the key.
    """
    engine, settings = config.engine(), config.eval
    address = Address.of(engine.get("url"), engine.get("key_env") or KEY_ENV)
    fields = Fields.of(config.model, engine)
    fields.of_sampling(settings.sampling)
    folder = config.out or Path("outputs") / "eval" / _slug(fields.model)
    benchmarks = [
        benchmark.head(settings.limit)
        for benchmark in load_benchmarks(
            config.benchmarks, config.data.root, config.data.columns.named()
        )
    ]
    renders = engine.get("tokenizer")
    if renders is None:
        tasks = [_unrendered(benchmark, settings.template, fields) for benchmark in benchmarks]
    elif fields.api == "completions":
        tasks = _rendered(benchmarks, renders, config, folder)
    else:
        raise UserError(
            "rollout.engine.tokenizer has no effect with rollout.engine.api=chat: the endpoint "
            "renders the prompts; remove it, or set rollout.engine.api=completions"
        )
    found = served(address, fields.model)
    if not settings.resume:
        for path in files_of(folder):
            path.unlink()
    identity = _identity(address, fields, renders, found)
    return Subject(
        folder,
        tuple(tasks),
        EngineSpec(fields.model, seed=settings.seed, folder=folder),
        lambda: identity,
        _reference(tasks[0].prompts[0]),
        tuple(_notes(address, fields, found, config.dtype)),
    )


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name).strip("_.") or "model"


def _identity(
    address: Address, fields: Fields, renders: str | None, found: Served
) -> Mapping[str, Any]:
    """All that is known of the model: where, its name, what the endpoint lists, what is sent."""
    parts = {
        "path": fields.model,
        "url": address.url,
        "query": dict(address.query),
        "served": found.card,
        "request": fields.settings(),
        "tokenizer": renders,
    }
    return redacted({name: part for name, part in parts.items() if part})  # type: ignore[no-any-return]


def _notes(address: Address, fields: Fields, found: Served, dtype: str | None) -> list[str]:
    notes = [
        f"{address.url}: {fields.model}, known by name alone; nothing says which weights it is"
    ]
    if found.names and fields.model not in found.names:
        close = did_you_mean(fields.model, found.names)
        notes.append(f"! the endpoint does not list {fields.model}{close} ({listed(found.names)})")
    if dtype is not None:
        notes.append(f"! dtype={dtype} has no effect: the endpoint decides how it computes")
    return notes


def _unrendered(benchmark: Benchmark, template: str, fields: Fields) -> Task:
    """Conversations that the endpoint renders; for `completions` the template's text alone."""
    text = prompt_template(template)
    turns = {p.id: [*p.turns, Turn("user", text.render(p))] for p in benchmark.problems}
    if fields.api == "completions":
        prompts = [_text(problem, turns[problem.id]) for problem in benchmark.problems]
    else:
        prompts = [conversation(problem, turns[problem.id]) for problem in benchmark.problems]
    return Task(benchmark, tuple(prompts), text, prompt_fingerprint(prompts))


def conversation(problem: Problem, turns: Sequence[Turn]) -> Prompt:
    """A prompt that the endpoint renders; its text is for readers, and names roles if need be."""
    if len(turns) == 1:
        text = turns[0].content
    else:
        text = "\n\n".join(f"[{turn.role}]\n{turn.content}" for turn in turns)
    return Prompt(problem, text, (), turns=tuple(turns))


def _text(problem: Problem, turns: Sequence[Turn]) -> Prompt:
    if len(turns) > 1:
        raise UserError(
            f"problem {problem.id!r} is a conversation, which only a chat template can render: set "
            "rollout.engine.tokenizer to the model's, or rollout.engine.api=chat"
        )
    return Prompt(problem, turns[0].content, ())


def _rendered(
    benchmarks: Sequence[Benchmark], name: str, config: EvalCommand, folder: Path
) -> list[Task]:
    """Prompts rendered by the tokenizer of a folder or hub id, as for weights."""
    settings = config.eval
    tokenizer = load_tokenizer(find_model(name), config.trust_remote_code)
    date = prompt_date(folder) if settings.resume else None
    limit = settings.max_prompt_tokens
    return [Task.prepare(b, tokenizer, settings.template, limit, date) for b in benchmarks]


def _reference(prompt: Prompt) -> Group:
    nothing = token_array(()), logprob_array(())
    answer = Completion(prompt.problem.answer, *nothing, "stop", reported_tokens=1)
    return Group(prompt, (answer,))
