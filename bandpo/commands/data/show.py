"""`bandpo data show`: the prompts of a dataset as a model gets them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from rich.console import Console
from rich.rule import Rule
from rich.text import Text

from bandpo.config.composition import compose, config_dir
from bandpo.config.overrides import verbatim
from bandpo.config.policy import ARITHMETIC, is_left_open
from bandpo.config.sections.data import DataConfig
from bandpo.config.sections.model import ModelConfig
from bandpo.data.benchmarks import load_benchmark, registered
from bandpo.data.prompting.display import histogram, length_line, marked_text, marked_tokens
from bandpo.data.prompts import Prompting, Rendering, set_chat_template
from bandpo.data.sources import load_problems
from bandpo.errors import UserError
from bandpo.model.source import find_model, load_tokenizer
from bandpo.types import Problem

ABOUT = (
    "Shows the first prompts of a dataset as the model gets them, text and tokens, and the lengths "
    "of all. SOURCE is a file of configs/data, a benchmark, a file, a hub id or a mapping; without "
    "it data.train is shown. Overrides are those of `bandpo train` (data.template=…, "
    "data.system_prompt=…, data.chat_template=none)."
)


class _Prompted(BaseModel):
    """The sections of a train configuration that prompts depend on."""

    data: DataConfig
    model: ModelConfig


def add_to(commands: Any) -> None:
    """Adds the subcommand."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "show", help="prompts as a model gets them: text, tokens, lengths", description=ABOUT
    )
    parser.add_argument("words", nargs="*", metavar="SOURCE | KEY=VALUE", help="see above")
    parser.add_argument("--model", help="folder, run, hub id or embedded: model.path=…")
    parser.add_argument("--n", type=_count, default=3, help="prompts to print (default: 3)")
    parser.add_argument("--plain", action="store_true", help="no colours")
    parser.set_defaults(run=_show)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of prompts")
    return int(text)


def _show(arguments: argparse.Namespace) -> bool:
    """Prints prompts and lengths."""
    named = [word for word in arguments.words if "=" not in word or word.startswith("{")]
    if len(named) > 1:
        raise UserError(f"bandpo data show takes one source, not {len(named)}: {' '.join(named)}")
    source = named[0] if named else None
    overrides = [_of_train(word) for word in arguments.words if word not in named]
    if arguments.model is not None:
        overrides.append(f"model.path={arguments.model}")
    config = compose("train", [*_of_source(source), *overrides], _Prompted)
    _require_model(config, overrides)
    tokenizer = load_tokenizer(
        find_model(config.model.path, config.model.seed, config.model.allow_pickle),
        config.model.trust_remote_code,
    )
    set_chat_template(tokenizer, config.data.chat_template)
    prompting = Prompting.of(config.data)
    rendering = Rendering(_problems(source, config.data), tokenizer, prompting)
    console = Console(color_system=None if arguments.plain else "auto", highlight=False)
    for index, prompt in enumerate(rendering.prompts[: arguments.n]):
        ids = prompt.token_ids
        title = (
            f"problem {prompt.problem.id!r}, answer {prompt.problem.answer!r}, {len(ids)} tokens"
        )
        console.print(Rule(Text(title), align="left"))
        console.print(marked_text(rendering.parts(index)), soft_wrap=True)
        pieces = tokenizer.convert_ids_to_tokens(list(ids))
        console.print(Text("tokens: ") + marked_tokens(ids, pieces, rendering.is_control))
    lengths = [len(prompt.token_ids) for prompt in rendering.prompts]
    limit = config.data.max_prompt_tokens
    console.print(Rule(Text("tokens of a prompt"), align="left"))
    for row in histogram(lengths, limit):
        console.print(row, soft_wrap=True)
    console.print(length_line(lengths, limit, config.data.overlong_prompts), soft_wrap=True)
    settings = ", ".join(f"{key}={value!r}" for key, value in prompting.facts().items())
    for line in [settings, *prompting.notes(tokenizer, rendering.prompts)]:
        console.print(Text(line), soft_wrap=True)
    return False


def _of_train(word: str) -> str:
    """An override of `bandpo train`; `model=…` is the model.path of `bandpo eval`."""
    return f"model.path={word.removeprefix('model=')}" if word.startswith("model=") else word


def _is_group(source: str) -> bool:
    return not source.startswith("_") and (config_dir() / "data" / f"{source}.yaml").is_file()


def _of_source(source: str | None) -> list[str]:
    """The override that makes a source the training data."""
    if source is None:
        return []
    if _is_group(source):
        return [f"data={source}"]
    is_mapping = source.startswith("{")
    return [f"data.train={source}" if is_mapping else verbatim("data.train", source)]


def _problems(source: str | None, data: DataConfig) -> Sequence[Problem]:
    if source in registered() and not _is_group(source):
        return load_benchmark(source, Path(data.root) if data.root else None).problems
    return load_problems(data.train, data.columns.named())


def _require_model(config: _Prompted, overrides: Sequence[str]) -> None:
    """Raises UserError where the embedded policy's tokenizer would show a user's own data."""
    train = config.data.train
    own = isinstance(train, dict) and train.get("_target_") == ARITHMETIC
    if is_left_open(overrides) and not own:
        raise UserError(
            "no model is named: its tokenizer and chat template make the prompts; add "
            "--model <folder, run, hub id or embedded>"
        )
