"""Completion of a whole command line: commands, their options, and their words."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bandpo.completion.candidate import Candidate, Paths, Way
from bandpo.completion.overrides import Overrides
from bandpo.completion.sources import ways

INDEX = Path(__file__).parent / "index.json"
SHELLS = ("bash", "zsh", "fish")
OPTIONS = {
    "--help": "show the commands",
    "--version": "show the version",
    "--install-completion": "complete command lines at TAB",
    "--show-completion": "print the shell's script for that",
}


def complete(before: Sequence[str], word: str) -> list[Way]:
    """The ways to complete a word behind others, of which the first is the program."""
    index = json.loads(INDEX.read_text(encoding="utf-8"))
    found = _ways(index, before[1:], word)
    return [way for way in found if isinstance(way, Paths) or way.text.startswith(word)]


def _ways(index: Mapping[str, Any], before: Sequence[str], word: str) -> Iterable[Way]:
    commands = index["commands"]
    if not before:
        return [*_named(commands), Candidate("help", "show the help of a command"), *_options(word)]
    first, *rest = before
    if first == "help":
        return _named(commands) if not rest else []
    if first in ("--install-completion", "--show-completion"):
        return map(Candidate, SHELLS) if not rest else []
    return _of_command(index, commands[first], rest, word) if first in commands else []


def _named(entries: Mapping[str, Any]) -> list[Candidate]:
    return [Candidate(name, entry["about"]) for name, entry in entries.items()]


def _options(word: str) -> list[Candidate]:
    return [Candidate(*option) for option in OPTIONS.items()] if word.startswith("-") else []


def _of_command(
    index: Mapping[str, Any], command: Mapping[str, Any], before: Sequence[str], word: str
) -> Iterator[Way]:
    """The ways to complete a word of one command."""
    options, words = command["options"], command["words"]
    place, waits, only_words = 0, None, False
    for number, given in enumerate(before):
        if waits is not None:
            waits = None
        elif given == "--":
            only_words = True
        elif given.startswith("-") and not only_words:
            waits = options.get(given, {}).get("values")
        elif "commands" in command and not only_words:
            if given in command["commands"]:
                inner = command["commands"][given]
                yield from _of_command(index, inner, before[number + 1 :], word)
            return
        else:
            place += 1
    if waits is not None:
        yield from _values(index, waits, "", word, before)
    elif word.startswith("-") and not only_words:
        option, equals, value = word.partition("=")
        if equals:
            sources = options.get(option, {}).get("values", [])
            yield from _values(index, sources, f"{option}=", value, before)
        else:
            yield from _named(options)
    elif "commands" in command and not only_words:
        yield from _named(command["commands"])
    elif words:
        yield from _values(index, words[min(place, len(words) - 1)], "", word, before)


def _values(
    index: Mapping[str, Any], sources: Sequence[Any], before: str, item: str, others: Sequence[str]
) -> Iterator[Way]:
    """The ways to complete an argument or an option's value."""
    for source in sources:
        if source in ("train", "eval"):
            parts = ("keys", "sections", "groups", "chosen")
            yield from Overrides(*(index[part][source] for part in parts)).ways(item, others)
        elif source == "sections":
            yield from (Candidate(k.rstrip("."), a) for k, a in index["sections"]["train"].items())
        elif source == "methods":  # a list of them
            head = item[: item.rfind(",") + 1]
            yield from ways([source], before + head, item[len(head) :], others)
        else:
            yield from ways([source], before, item, others)
