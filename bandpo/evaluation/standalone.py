"""One evaluation of a model outside a run: from its configuration to its report."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from rich.console import Console

from bandpo.cpu import usable_cores
from bandpo.data.benchmarks import load_benchmarks
from bandpo.data.prompts import Prompting, reference_answer, set_chat_template
from bandpo.disk.space import require_folder
from bandpo.evaluation.eval_config import EvalCommand, EvalSection, dtype_on
from bandpo.evaluation.evaluate import Evaluator, Task, demands_of
from bandpo.evaluation.measures.repeats import repeats, repeats_table, write_repeats
from bandpo.evaluation.presets import read_preset
from bandpo.evaluation.progress import ProgressDisplay
from bandpo.evaluation.report import protocol_lines, summary_table, write_report
from bandpo.evaluation.samples import prompt_date
from bandpo.evaluation.store import Store
from bandpo.evaluation.subjects.endpoint import endpoint
from bandpo.evaluation.subjects.subject import Subject
from bandpo.evaluation.summary import Summary
from bandpo.model.generation import generation_settings
from bandpo.model.source import ModelSource, find_model, load_tokenizer
from bandpo.model.vocabulary import examine_tokenizer, require_known_stops
from bandpo.ranks.collectives import Alone, Ranks
from bandpo.ranks.neighbours import Neighbours
from bandpo.reward import Compared, MathVerifier
from bandpo.rollout.context import context_length, require_context
from bandpo.rollout.engine import EngineSpec, start_engine
from bandpo.rollout.scoring import try_reward

MOST = 0.5
"""Share of completions without a readable answer from which on accuracies are doubtful."""


def _checkpoint(config: EvalCommand) -> Subject:
    """The weights of a folder or of the hub."""
    model = find_model(config.model, allow_pickle=config.allow_pickle)
    benchmarks = load_benchmarks(config.benchmarks, config.data.root, config.data.columns.named())
    tokenizer = load_tokenizer(model, config.trust_remote_code)
    settings, prompting = config.eval, Prompting.of(config.eval)
    set_chat_template(tokenizer, prompting.chat_template)
    folder = config.out or Path("outputs") / "eval" / model.slug
    first = next(iter(settings.folders(folder).values()))
    date = prompt_date(first) if settings.resume else None
    tasks = [
        Task.prepare(
            b.head(settings.limit),
            tokenizer,
            prompting,
            settings.max_prompt_tokens,
            date,
            settings.choice_template,
        )
        for b in benchmarks
    ]
    prompts = list(chain.from_iterable(task.prompts for task in tasks))
    lm_config = model.config(config.trust_remote_code)
    notes = examine_tokenizer(model.path, lm_config, tokenizer, prompts, settings.stop)
    require_known_stops(settings.parameters.stop_token_ids, lm_config, "eval.stop")
    if settings.sampling is None:
        notes += generation_settings(model.path).unused()
    notes += prompting.notes(tokenizer, prompts)
    own = str(getattr(lm_config, "dtype", None) or "float32").removeprefix("torch.")
    dtype = config.dtype or dtype_on(own, torch.cuda.is_available())
    if config.dtype is None and dtype != own:
        notes.append(f"the model's weights are {own}; it is computed in {dtype} (see dtype=…)")
    context = _context(config, model, tasks)
    spec = EngineSpec(
        model_path=model.path,
        dtype=dtype,
        seed=settings.seed,
        trust_remote_code=config.trust_remote_code,
        chat_template=prompting.chat_template,
        max_model_len=context,
        threads=usable_cores(),
        folder=folder,
    )
    return Subject(
        folder,
        tuple(tasks),
        spec,
        lambda: model.identity() | {"dtype": dtype},
        reference_answer(tasks[0].prompts[0], tokenizer),
        tuple(notes),
    )


def evaluate_model(config: EvalCommand) -> None:
    """Writes samples, summary.json and report.html, and prints the table; collective.

    Raises `UserError` for everything that a user can have got wrong, before anything that takes
    minutes.
    """
    subject = endpoint(config) if config.by_name_only else _checkpoint(config)
    engine_settings, settings, folder = config.engine(), config.eval, subject.folder
    folders = settings.folders(folder)
    require_folder(folder, "out=")  # last: a refusal leaves nothing behind
    with ExitStack() as stack:
        ranks, parts = _joined(stack)
        for note in subject.notes if ranks.rank == 0 else ():
            Console(stderr=True).print(note, highlight=False, markup=False)
        # Weights are hashed once, not by every rank.
        identified = subject.identity() if ranks.rank == 0 else {}
        identity: Mapping[str, Any] = ranks.gather(identified)[0]
        reward = instantiate(config.reward)
        parts.callback(reward.close)
        try_reward(reward, subject.reference)
        engine = start_engine(engine_settings, dataclasses.replace(subject.spec, ranks=ranks))
        parts.callback(engine.close)
        votes = MathVerifier()  # its workers start with the first answers to compare
        parts.callback(votes.close)
        evaluator = Evaluator(
            engine,
            reward,
            settings.parameters,
            settings.seed,
            identity,
            config.reward,
            ranks,
            votes.equal,
            _protocol(settings),
        )
        on_progress = stack.enter_context(ProgressDisplay(shown=ranks.rank == 0))
        found = {
            seed: dataclasses.replace(evaluator, seed=seed).run(
                subject.tasks, Store(place, settings.resume), on_progress
            )
            for seed, place in folders.items()
        }
    if ranks.rank == 0:
        for seed, place in folders.items():
            _publish(place, found[seed], settings.report_samples)
        if settings.seeds:
            _publish_repeats(folder, found)
        for note in getattr(engine, "notes", list)():
            Console().print(note, highlight=False, markup=False)
        if isinstance(reward, Compared):
            Console().print(reward.report.render(), highlight=False, markup=False)


def _protocol(settings: EvalSection) -> dict[str, Any] | None:
    """The preset as summaries name it, with every deviation; None without one."""
    if settings.preset is None:
        return None
    preset = read_preset(settings.preset)
    deviations = preset.deviations(settings)
    return {"name": preset.name, "source": preset.source, "deviations": deviations}


def _publish_repeats(folder: Path, found: Mapping[int, Sequence[Summary]]) -> None:
    spread = repeats(found)
    path = write_repeats(folder, spread)
    Console().print(repeats_table(spread))
    Console().print(f"the spread over the seeds is in {path}", highlight=False)


def _publish(folder: Path, summaries: Sequence[Summary], report_samples: int) -> None:
    report = write_report(folder, report_samples)
    console = Console()
    console.print(summary_table(summaries))
    for line in protocol_lines(summaries[0]):
        console.print(line, highlight=False, markup=False)
    for summary in summaries:
        for warning in [*summary.warnings, *cut_or_unanswered(summary)]:
            console.print(f"! {summary.benchmark}: {warning}", highlight=False, markup=False)
    form = summaries[0].settings["scoring"].get("lowest_form")
    if form is not None:
        console.print(f"answers count with lowest_form={form} (docs/verifier.md)", highlight=False)
    console.print(f"samples and summary.json in {folder}, to read: {report}", highlight=False)


def cut_or_unanswered(summary: Summary) -> list[str]:
    """Warnings about a benchmark most of whose completions no accuracy can be read from."""
    cut = summary.metrics["length/truncated_frac"].value
    silent = summary.metrics["no_answer_frac"].value
    limit, template = summary.settings["max_tokens"], summary.settings["template"]
    warnings = []
    if cut > MOST:
        warnings.append(
            f"{cut:.0%} of the completions were cut off at eval.max_tokens={limit}: raise it"
        )
    if silent > MOST:
        warnings.append(
            f"{silent:.0%} of the completions hold no answer that can be read: is "
            f"eval.template={template} what the model was trained with?"
        )
    return warnings


def _joined(stack: ExitStack) -> tuple[Ranks, ExitStack]:
    """The ranks that a launcher announced, and a stack that closes after they have parted.

    On a GPU vLLM needs a process group even of one rank.
    """
    if "RANK" not in os.environ and not torch.cuda.is_available():
        return Alone(), stack
    joined = stack.enter_context(Ranks())
    parts = stack.enter_context(ExitStack())
    stack.enter_context(Neighbours(joined))
    return joined, parts


def _context(config: EvalCommand, model: ModelSource, tasks: Sequence[Task]) -> int:
    """Tokens of the longest prompt and completion; raises `UserError` if the model takes fewer."""
    demands = demands_of(tasks, config.eval.max_tokens)
    limit = context_length(model.config(config.trust_remote_code))
    require_context(f"model={model.spec}", limit, demands, "eval.max_prompt_tokens")
    return max(demand.tokens for demand in demands)
