#!/usr/bin/env python3
"""Writes bandpo/completion/index.json, from which the command line is completed at TAB.

It holds the commands with their options, as their parsers have them, and the keys of `bandpo train`
and `bandpo eval`, as the schemas and the groups of configs/ have them. Reading it takes a
millisecond; importing what it is made from takes seconds.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin
from unittest.mock import patch

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from bandpo import cli
from bandpo.commands.composed import first_clause, groups
from bandpo.config.composition import config_dir
from bandpo.config.rollout_correction import NAMES
from bandpo.config.schema import Config
from bandpo.evaluation.eval_config import EvalCommand

INDEX = Path(cli.__file__).parent / "completion" / "index.json"
SCHEMAS: dict[str, type[BaseModel]] = {"train": Config, "eval": EvalCommand}

# How arguments of commands that are not paths or choices are completed, by their names there:
# functions of bandpo/completion/values.py, or the command whose overrides they are.
ARGUMENTS = {
    "recipe": ["recipes"],
    "methods": ["methods"],
    "source": ["benchmarks", "files"],
    "train": ["benchmarks", "files"],
    "benchmarks": ["benchmarks", "files"],
    "words": ["benchmarks", "files", "train"],
    "columns": ["train"],
    "overrides": ["train"],
    "model": [["embedded", "smollm2"], "folders"],
    "package": ["sections"],
}
# The values of keys whose types do not have them.
VALUES: dict[str, list[Any]] = {
    "model.path": [["embedded", "smollm2"], "folders"],
    "model": [["embedded", "smollm2"], "folders"],
    "data.train": ["files"],
    "data.root": ["folders"],
    "data.template": ["templates", "files"],
    "data.system_prompt": [["null"]],
    "data.chat_template": [["none", "null"], "files"],
    "run.dir": ["folders"],
    "out": ["folders"],
    "benchmarks": ["benchmarks"],
    "method.correction": [[*NAMES]],
    "trainer.resume": [["auto", "never"], "folders"],
    "tracking.trackers": [["wandb", "tensorboard", "trackio"]],
    "eval.benchmarks": ["benchmarks"],
    "eval.preset": ["presets"],
    "eval.template": ["templates", "files"],
    "eval.choice_template": ["templates", "files"],
    "eval.system_prompt": [["null"]],
    "eval.chat_template": [["none", "null"], "files"],
    "rollout.engine.dtype": [["float32", "bfloat16", "null"]],
    "rollout.engine.api": [["chat", "completions"]],
    "rollout.engine.transfer": [["folder", "nccl", "ipc"]],
    "rollout.engine.exchange": ["folders"],
    "rollout.engine.tokenizer": ["folders"],
    "reward.lowest_form": [["off", "restated", "strict"]],
}
# The place of the keys that a group's files add, and the part of a file that goes there.
PLACES = {
    "data": ("data.train", "train"),
    "method": ("method", ""),
    "reward": ("reward", ""),
    "rollout": ("rollout.engine", "engine"),
    "sampler": ("data.sampler", ""),
}
# Commands that hand their words to a program of another language, and therefore have no parser.
HANDED_ON: dict[str, Any] = {
    "launch": {
        "options": {
            "--help": {"about": "show this page"},
            "--nproc": {"about": "processes of a node", "values": []},
            "--nodes": {"about": "nodes, each of which runs this command", "values": []},
            "--head": {"about": "the node that the others reach", "values": []},
            "--hostfile": {"about": "deepspeed's hostfile", "values": ["files"]},
            "--slurm": {"about": "the nodes of a SLURM allocation"},
            "--dry-run": {"about": "print the command"},
        },
        "words": [["train"]],
    }
}


class _Parser(Exception):
    """Carries a command's parser, instead of what it would parse."""


def parser_of(main: Any) -> argparse.ArgumentParser:
    """The parser that a command makes for its arguments."""

    def carried(parser: argparse.ArgumentParser, *_: Any, **__: Any) -> NoReturn:
        raise _Parser(parser)

    def refused(*_: Any) -> NoReturn:
        raise TypeError(f"{main.__module__} starts a program: describe it in HANDED_ON")

    names = ("parse_known_args", "parse_known_intermixed_args")
    parsing = patch.multiple(argparse.ArgumentParser, **dict.fromkeys(names, carried))
    with parsing, patch.object(os, "execvpe", refused):
        try:
            main([])
        except _Parser as found:
            return found.args[0]  # type: ignore[no-any-return]
    raise TypeError(f"{main.__module__} parses no arguments with argparse")


def commands() -> dict[str, Any]:
    """Every command."""
    found: dict[str, Any] = {}
    for name, (place, about) in cli.COMMANDS.items():
        if name in HANDED_ON:
            started = {job: found[job] for job in SCHEMAS}  # they come first
            found[name] = {"about": about, **HANDED_ON[name], "commands": started}
            continue
        module, function = place.split(":")
        parser = parser_of(getattr(importlib.import_module(module), function))
        found[name] = {"about": about, **command(parser)}
        if name in SCHEMAS:  # their parsers leave overrides aside
            found[name]["words"] = [[name]]
    return found


def command(parser: argparse.ArgumentParser) -> dict[str, Any]:
    """A command's options, its words (the last may be repeated), and its subcommands."""
    found: dict[str, Any] = {"options": {}, "words": []}
    repeats = True
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            about = {choice.dest: choice.help or "" for choice in action._choices_actions}
            found["commands"] = {
                name: {"about": about[name], **command(inner)}
                for name, inner in action.choices.items()
            }
        elif action.option_strings:
            option: dict[str, Any] = {"about": first_clause(action.help or "") % vars(action)}
            if action.nargs != 0:
                option["values"] = values(action)
            found["options"] |= dict.fromkeys(action.option_strings, option)
        else:
            found["words"].append(values(action))
            repeats = action.nargs in ("*", "+", argparse.REMAINDER)
    return found | ({} if repeats else {"words": [*found["words"], []]})


def values(action: argparse.Action) -> list[Any]:
    """The sources of an argument's values."""
    if action.choices:
        return [list(action.choices)]
    return ["files"] if action.type is Path else ARGUMENTS.get(action.dest, [])


def keys(name: str, schema: type[BaseModel]) -> dict[str, Any]:
    """Every key that a command takes: those of its schema, and those that groups add to it."""
    found = {
        key: entry(key, field.description or "", field.annotation)
        for key, field in declared(schema)
    }
    for group in PLACES:
        if group in dict(groups(name)):
            found |= added(name, group)
    return found


def entry(key: str, description: str, annotation: Any) -> dict[str, Any]:
    """A key's description and the sources of its values; without what is empty."""
    found = {"about": first_clause(description), "values": VALUES.get(key, spelled(annotation))}
    return {name: part for name, part in found.items() if part}


def declared(schema: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """The keys of a schema that an override sets: neither sections nor what a group fills."""
    for name, field in schema.model_fields.items():
        if is_section(field.annotation):
            yield from declared(field.annotation, f"{prefix}{name}.")  # type: ignore[arg-type]
        elif not (field.is_required() and get_origin(field.annotation) is dict):
            yield f"{prefix}{name}", field


def sections(schema: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """The sections of a schema, and the first lines of their docstrings."""
    for name, field in schema.model_fields.items():
        if is_section(field.annotation):
            yield f"{prefix}{name}.", first_clause(inspect.getdoc(field.annotation) or "")
            yield from sections(field.annotation, f"{prefix}{name}.")  # type: ignore[arg-type]


def is_section(annotation: Any) -> bool:
    """Whether a field's type is a section of keys."""
    return inspect.isclass(annotation) and issubclass(annotation, BaseModel)


def spelled(annotation: Any) -> list[list[str]]:
    """The values of a type that has few, as they are written in overrides."""
    words = list(dict.fromkeys(_words(annotation)))
    return [words] if words else []


def _words(annotation: Any) -> Iterator[str]:
    if annotation is bool:
        yield from ("true", "false")
    elif annotation is NoneType:
        yield "null"
    elif get_origin(annotation) is Literal:
        for word in get_args(annotation):
            yield str(word).lower() if isinstance(word, bool) else str(word)
    elif get_origin(annotation) in (Union, UnionType):
        for member in get_args(annotation):
            yield from _words(member)


def added(name: str, group: str) -> dict[str, Any]:
    """The keys that the files of a group add to the schema's, with the files that have each."""
    place, within = PLACES[group]
    files: dict[str, list[str]] = {}
    kinds: dict[str, Any] = {}
    for path in sorted((config_dir() / group).glob("[!_]*.yaml")):
        for last, value in settings(path, within).items():
            if not isinstance(value, dict) and last != "_target_":
                files.setdefault(last, []).append(path.stem)
                kinds[last] = type(value)
    found = {}
    for last, names in files.items():
        key = f"{place}.{last}"
        found[key] = entry(key, comment(group, last, names), kinds[last]) | {"of": {group: names}}
    return {key: new for key, new in found.items() if key not in dict(declared(SCHEMAS[name]))}


def settings(path: Path, within: str) -> dict[str, Any]:
    """The settings of a group's file, over those of the files that its defaults name."""
    text = path.read_text(encoding="utf-8")
    content = yaml.safe_load(text)
    found: dict[str, Any] = {}
    for base in content.pop("defaults", []):
        if isinstance(base, str) and base != "_self_":
            found |= settings(path.with_name(f"{base.partition('@')[0]}.yaml"), within)
    if "@package _global_" in text:
        content = content.get(path.parent.name, {})
    return found | (content.get(within, {}) if within else content)


def comment(group: str, key: str, files: Sequence[str]) -> str:
    """The comment behind a key that several files of a group have; empty where there is none.

    A comment in one of them alone may be about that file's value.
    """
    found = {}
    for path in sorted((config_dir() / group).glob("*.yaml")):
        line = re.search(rf"^ *{key}:[^#\n]*#\s*(.+)$", path.read_text("utf-8"), re.MULTILINE)
        if line:
            found[path.stem] = line[1]
    if len(found) == 1 < len(files) and not next(iter(found)).startswith("_"):
        return ""
    return next(iter(found.values()), "")


def chosen(name: str) -> dict[str, str | None]:
    """The files of groups that a command takes where its arguments name none."""
    content = yaml.safe_load((config_dir() / f"{name}.yaml").read_text("utf-8"))
    entries = [entry for entry in content["defaults"] if isinstance(entry, dict)]
    # Those of data depend on the model.
    return {group: file for entry in entries for group, file in entry.items() if group != "data"}


def index() -> dict[str, Any]:
    """All that completion knows besides the folders of configs/ and recipes/."""
    return {
        "commands": commands(),
        "keys": {name: keys(name, schema) for name, schema in SCHEMAS.items()},
        "sections": {name: dict(sections(schema)) for name, schema in SCHEMAS.items()},
        "groups": {name: [group for group, _ in groups(name)] for name in SCHEMAS},
        "chosen": {name: chosen(name) for name in SCHEMAS},
    }


def document() -> str:
    """The file: an entry per line."""
    parts = []
    for part, entries in index().items():
        lines = [
            f"    {json.dumps(name)}: {_lines(entry, part)}" for name, entry in entries.items()
        ]
        parts.append(f"  {json.dumps(part)}: {{\n" + ",\n".join(lines) + "\n  }")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _lines(entry: Any, part: str) -> str:
    if part not in ("keys", "sections"):
        return json.dumps(entry, ensure_ascii=False)
    lines = [
        f"      {json.dumps(k)}: {json.dumps(e, ensure_ascii=False)}" for k, e in entry.items()
    ]
    return "{\n" + ",\n".join(lines) + "\n    }"


if __name__ == "__main__":
    INDEX.write_text(document(), encoding="utf-8")
    print(f"wrote {INDEX.name}")
