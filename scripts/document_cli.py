#!/usr/bin/env python3
"""Writes docs/cli.md from the commands' own parsers; run it after a change of their options."""

from __future__ import annotations

import argparse
import importlib
import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest import mock

from pydantic import BaseModel

from bandpo.cli import COMMANDS, usage
from bandpo.commands.composed import Composed, groups

PAGE = Path(__file__).resolve().parents[1] / "docs" / "cli.md"
HEADER = """# Command line

Written from the commands' own parsers by `scripts/document_cli.py`; `bandpo <command> --help`
prints the same. Exit codes: 0 for success, 1 for a failure, 2 for input that the command refuses,
with a message that says what to change.

```text
{usage}
```
"""


class _Found(Exception):
    """Carries a command's parser out of the command."""


def document() -> str:
    """The whole page."""
    page = [HEADER.format(usage=usage())]
    for name, (path, about) in COMMANDS.items():
        module = importlib.import_module(path.split(":")[0])
        if script := getattr(module, "usage", None):  # which reads its arguments itself
            page += [f"## bandpo {name}", "", "```text", script().rstrip(), "```", ""]
            continue
        parser = parser_of(getattr(module, path.split(":")[1]))
        page += [f"## bandpo {name}", "", *_described(parser, about)]
        if isinstance(command := getattr(module, "COMMAND", None), Composed):
            page += _composed(command)
        for inner, short in _subcommands(parser):
            page += [f"### {inner.prog}", "", *_described(inner, short)]
    return "\n".join(page).rstrip() + "\n"


def parser_of(main: object) -> argparse.ArgumentParser:
    """The parser that a command makes of its arguments."""

    def stop(parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        raise _Found(parser)

    kind = argparse.ArgumentParser
    with (
        mock.patch.object(kind, "parse_known_args", stop),
        mock.patch.object(kind, "parse_known_intermixed_args", stop),
    ):
        try:
            main([])  # type: ignore[operator]
        except _Found as found:
            parser: argparse.ArgumentParser = found.args[0]
            return parser
    raise SystemExit(f"{main}: reads its arguments without argparse")


def _subcommands(parser: argparse.ArgumentParser) -> Iterator[tuple[argparse.ArgumentParser, str]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
            yield from ((inner, helps.get(name, "")) for name, inner in action.choices.items())


def _described(parser: argparse.ArgumentParser, about: str) -> Iterator[str]:
    """What the command is for, how it is called, and a table of its arguments."""
    words, _, listed = (parser.description or about).partition("\n\n")
    words = re.sub(r"^`bandpo [^:`]*`: ", "", " ".join(words.split()))
    capital = words[:1].upper() if "/" not in words.split()[0] else words[:1]
    yield f"{capital}{words[1:].rstrip('.')}."
    if "\n  " in listed:  # columns of its own
        yield from ("", "```text", listed.strip("\n"), "```")
    elif listed:
        yield from ("", " ".join(listed.split()))
    call = " ".join(parser.format_usage().removeprefix("usage: ").split())
    call = re.sub(r"\[[^]]*\]", lambda match: match[0].replace(" ", "\xa0"), call)
    call = textwrap.fill(call, 88, subsequent_indent="    ", break_on_hyphens=False)
    yield from ("", "```text", call.replace("\xa0", " "), "```", "")
    rows = [
        (_name(action), _help(parser, action))
        for action in parser._actions
        if action.dest != "help" and not isinstance(action, argparse._SubParsersAction)
    ]
    if rows:
        yield from (*_table(("argument", "meaning"), rows), "")


def _name(action: argparse.Action) -> str:
    """A flag with its value, or a positional argument."""
    value = action.metavar or action.dest.upper()
    if not action.option_strings:
        return f"`{action.metavar or action.dest}`"
    takes = action.nargs != 0
    return ", ".join(
        f"`{flag} {value}`" if takes else f"`{flag}`" for flag in action.option_strings
    )


def _help(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    text = parser._get_formatter()._expand_help(action) if action.help else ""
    has_default = action.default not in (None, False, argparse.SUPPRESS, [])
    if action.option_strings and has_default and "default" not in text:
        text += f" (default: {action.default})"
    return text


def _composed(command: Composed) -> Iterator[str]:
    """Keys, groups and examples of a command that takes hydra overrides."""
    yield "Common keys ([configuration.md](configuration.md) has them all):"
    yield ""
    rows = [(f"`{key}`", _meaning(command.schema, key)) for key in command.keys]
    yield from (*_table(("key", "meaning"), rows), "")
    yield "Groups, and the files to choose from:"
    yield ""
    files_of = [(f"`{name}`", files) for name, files in groups(command.name)]
    yield from (*_table(("group", "files"), files_of), "")
    yield from ("```bash", *command.examples, "```", "")


def _meaning(schema: type[BaseModel], key: str) -> str:
    """A key's description in the schema."""
    *sections, name = key.split(".")
    for section in sections:
        schema = schema.model_fields[section].annotation  # type: ignore[assignment]
    return schema.model_fields[name].description or ""


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    for row in rows:
        yield f"| {' | '.join(map(_escaped, row))} |"


def _escaped(cell: str) -> str:
    """A cell in which Markdown sees no column and no HTML, but code as it is."""
    return re.sub(r"`[^`]*`|<", lambda m: "&lt;" if m[0] == "<" else m[0], cell).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(document(), encoding="utf-8")
    print(f"wrote {PAGE.name}")
