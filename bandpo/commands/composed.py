"""Commands whose arguments are hydra overrides: their --help, and hydra's own --cfg and --info."""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from bandpo.config.composition import (
    GROUPS_OF_OTHERS,
    config_dir,
    show_composed,
    show_info,
    values_of,
)
from bandpo.errors import UserError, did_you_mean

WIDTH = 96
INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")


@dataclass(frozen=True)
class Composed:
    """A command that composes configs/<name>.yaml with overrides, as `schema`."""

    name: str
    schema: type[BaseModel]
    about: str
    keys: tuple[str, ...]
    examples: tuple[str, ...]
    options: tuple[tuple[str, ...], ...] = ()
    """(flag, …, meaning) of switches that the command itself handles; they stay in its words."""
    given: tuple[str, ...] = ()
    """Overrides with which the page shows the values of keys."""

    def words(self, argv: Sequence[str]) -> list[str] | None:
        """The overrides, after the command's own switches; None where an option is answered.

        Raises UserError for an unknown option.
        """
        parser = self._parser()
        given, rest = parser.parse_known_args(list(argv))
        overrides = [word for word in rest if not word.startswith("-")]
        if unknown := [word for word in rest if word.startswith("-")]:
            flags = [flag for action in parser._actions for flag in action.option_strings]
            raise UserError(
                f"no option {unknown[0]}{did_you_mean(unknown[0], flags)} "
                f"(bandpo {self.name} --help lists options and keys)"
            )
        if given.help:
            print(self.page(parser))
        elif given.cfg:
            show_composed(
                self.name, overrides, self.schema, given.cfg, given.package, given.resolve
            )
        elif given.info:
            show_info(self.name, overrides, self.schema, given.info)
        else:
            own = [flags[0] for *flags, _ in self.options if getattr(given, _attribute(flags))]
            return [*own, *overrides]
        sys.stdout.flush()
        return None

    def page(self, parser: argparse.ArgumentParser | None = None) -> str:
        """The text of --help: use, options, common keys, groups with their files, examples."""
        given = f" with {' '.join(self.given)}" if self.given else ""
        keys = values_of(self.name, self.given, self.schema)
        return "\n".join(
            [
                *(parser or self._parser()).format_help().rstrip().splitlines(),
                *(
                    "",
                    f"common keys, their values{given}, and what they are:",
                ),
                *_keys(self.schema, {key: keys[key] for key in self.keys}),
                *("", f"groups and the files to choose from, in {config_dir()}:"),
                *_columns(groups(self.name)),
                *("", f"all keys: bandpo {self.name} --cfg job, and docs/configuration.md"),
                *("", "examples:", *(f"  {example}" for example in self.examples)),
            ]
        )

    def _parser(self) -> argparse.ArgumentParser:
        parser = argparse.ArgumentParser(
            prog=f"bandpo {self.name}",
            usage=f"bandpo {self.name} [options] [KEY=VALUE | GROUP=FILE | +KEY=VALUE | ~KEY]…",
            description=self.about,
            add_help=False,
            allow_abbrev=False,
            formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=WIDTH),
        )
        switch: Any = {"action": "store_true"}
        parser.add_argument("-h", "--help", **switch, help="show this page")
        for *flags, meaning in self.options:
            parser.add_argument(*flags, **switch, help=meaning)
        parser.add_argument(
            "-c",
            "--cfg",
            choices=("job", "hydra", "all"),
            metavar="KIND",
            help="print the composed configuration (job), hydra's own, or all",
        )
        parser.add_argument("--resolve", **switch, help="with --cfg: interpolations as values")
        parser.add_argument("-p", "--package", help="with --cfg: only this part, such as learner")
        parser.add_argument(
            "-i",
            "--info",
            nargs="?",
            const="all",
            choices=INFO,
            metavar="KIND",
            help=f"print how hydra composes: {', '.join(INFO)}",
        )
        return parser


def _attribute(flags: Sequence[str]) -> str:
    """argparse's name of an option: its first long flag."""
    return next(flag for flag in flags if flag.startswith("--"))[2:].replace("-", "_")


def _keys(schema: type[BaseModel], values: Mapping[str, Any]) -> list[str]:
    """A line per key: its value, and the first clause of its description in the schema."""
    rows = [(key, _shown(value), _meaning(schema, key)) for key, value in values.items()]
    first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
    lines = (f"  {key:<{first}}  {value:<{second}}  {meaning}" for key, value, meaning in rows)
    return [line if len(line) <= WIDTH else f"{line[: WIDTH - 1]}…" for line in lines]


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return str(value.get("_target_", "{…}")).rpartition(".")[2]
    if isinstance(value, list):
        return f"[{','.join(map(_shown, value))}]"
    return "null" if value is None else str(value) or "''"


def _meaning(schema: type[BaseModel], key: str) -> str:
    *sections, name = key.split(".")
    for section in sections:
        schema = schema.model_fields[section].annotation  # type: ignore[assignment]
    return first_clause(schema.model_fields[name].description or "")


def first_clause(text: str) -> str:
    """The first clause of a description, without what is in parentheses."""
    text = re.sub(r"\s*\([^()]*\)|`", "", text)
    return text.split(";")[0].split(". ")[0].rstrip(".")


def groups(name: str) -> list[tuple[str, str]]:
    """Every group that the command takes, as overrides name it, with the names of its files."""
    folders = sorted(path for path in config_dir().iterdir() if path.is_dir())
    found = []
    for folder in folders:
        if folder.name not in GROUPS_OF_OTHERS[name]:
            files = sorted(path.stem for path in folder.glob("[!_]*.yaml"))
            # Those of no default list are added, not replaced.
            plus = "+" if folder.name == "protocol" else ""
            found.append((f"{plus}{folder.name}", ", ".join(files)))
    return found


def _columns(rows: Sequence[tuple[str, str]]) -> list[str]:
    width = max(len(name) for name, _ in rows)
    lines = []
    for name, text in rows:
        first, *more = textwrap.wrap(text, WIDTH - width - 4) or [""]
        lines += [f"  {name:<{width}}  {first}", *(f"  {'':<{width}}  {line}" for line in more)]
    return lines
