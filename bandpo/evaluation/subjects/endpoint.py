"""A model that is a name at an OpenAI-compatible endpoint: no weights, and mostly no tokens."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bandpo.config.sections.prompting import PLAIN
from bandpo.data.benchmarks import Benchmark, load_benchmarks
from bandpo.data.prompts import Prompting, prompt_fingerprint, set_chat_template
from bandpo.errors import UserError, did_you_mean, listed
from bandpo.evaluation.eval_config import EvalCommand
from bandpo.evaluation.evaluate import Task, prompting_of
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


def endpoint(config: EvalCommand) -> Subject:
    """The endpoint's model; replies of an earlier evaluation are discarded without eval.resume.

    Raises UserError for settings that cannot be, and where the endpoint does not answer or does not
    take the key.
    """
    engine, settings = config.engine(), config.eval
    address = Address.of(engine.get("url"), engine.get("key_env") or KEY_ENV)
    fields = Fields.of(config.model, engine)
    fields.of_sampling(settings.parameters)
    folder = config.out or Path("outputs") / "eval" / _slug(fields.model)
    benchmarks = [
        benchmark.head(settings.limit)
        for benchmark in load_benchmarks(
            config.benchmarks, config.data.root, config.data.columns.named()
        )
    ]
    renders = engine.get("tokenizer")
    prompting = Prompting.of(settings)
    _require_renderer(fields, renders, prompting)
    if renders is None:
        choice = settings.choice_template
        tasks = [_unrendered(b, prompting_of(b, prompting, choice), fields) for b in benchmarks]
    else:
        tasks = _rendered(benchmarks, renders, prompting, config, folder)
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


def _require_renderer(fields: Fields, renders: str | None, prompting: Prompting) -> None:
    """Raises UserError for settings of prompts that nobody would read."""
    if fields.api == "chat" and renders is not None:
        raise UserError(
            "rollout.engine.tokenizer has no effect with rollout.engine.api=chat: the endpoint "
            "renders the prompts; remove it, or set rollout.engine.api=completions"
        )
    if renders is not None:
        return
    here = "rollout.engine.api=completions with rollout.engine.tokenizer renders prompts here"
    if prompting.chat_template is not None and not (
        fields.api == "completions" and prompting.is_plain
    ):
        raise UserError(
            f"eval.chat_template={prompting.chat_template} would have no effect: "
            f"rollout.engine.api={fields.api} leaves it to the endpoint; {here}"
        )
    if prompting.variables and _sent(fields) != dict(prompting.variables):
        raise UserError(
            "eval.chat_template_kwargs: the endpoint renders the prompts; where it takes them, "
            "send 'rollout.engine.extra_body={chat_template_kwargs: {…}}' with the same values"
        )
    if fields.api == "completions" and prompting.system_prompt is not None:
        raise UserError(
            "eval.system_prompt: with rollout.engine.api=completions the text of eval.template is "
            f"the prompt, without turns; {here}"
        )


def _sent(fields: Fields) -> object:
    return fields.extra_body.get("chat_template_kwargs")


def _unrendered(benchmark: Benchmark, prompting: Prompting, fields: Fields) -> Task:
    """Conversations that the endpoint renders; for `completions` the template's text alone."""
    if fields.api == "completions":
        how = dataclasses.replace(prompting, chat_template=PLAIN)
        prompts = [Prompt(p, how.render(None, p, {}), ()) for p in benchmark.problems]
    else:
        how = prompting
        prompts = [conversation(p, how.turns(p)) for p in benchmark.problems]
    return Task(benchmark, tuple(prompts), how, prompt_fingerprint(prompts))


def conversation(problem: Problem, turns: Sequence[Turn]) -> Prompt:
    """A prompt that the endpoint renders; its text is for readers, and names roles if need be."""
    if len(turns) == 1:
        text = turns[0].content
    else:
        text = "\n\n".join(f"[{turn.role}]\n{turn.content}" for turn in turns)
    return Prompt(problem, text, (), turns=tuple(turns))


def _rendered(
    benchmarks: Sequence[Benchmark],
    name: str,
    prompting: Prompting,
    config: EvalCommand,
    folder: Path,
) -> list[Task]:
    """Prompts rendered by the tokenizer of a folder or hub id, as for weights."""
    settings = config.eval
    tokenizer = load_tokenizer(find_model(name), config.trust_remote_code)
    set_chat_template(tokenizer, prompting.chat_template)
    first = next(iter(settings.folders(folder).values()))
    date = prompt_date(first) if settings.resume else None
    limit, choice = settings.max_prompt_tokens, settings.choice_template
    return [Task.prepare(b, tokenizer, prompting, limit, date, choice) for b in benchmarks]


def _reference(prompt: Prompt) -> Group:
    nothing = token_array(()), logprob_array(())
    answer = Completion(prompt.problem.answer, *nothing, "stop", reported_tokens=1)
    return Group(prompt, (answer,))
