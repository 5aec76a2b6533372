"""Completions as bash, zsh and fish take them; their scripts, which ask for these."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from bandpo.completion.candidate import Candidate, Paths, Way
from bandpo.completion.commands import complete
from bandpo.completion.line import Line, read_line


def script(shell: str) -> str:
    """The script that makes a shell complete `bandpo`."""
    return (Path(__file__).parent / f"bandpo.{shell}").read_text(encoding="utf-8")


def main(argv: Sequence[str]) -> int:
    """`bandpo --complete SHELL LINE [BREAKS]`: prints completions; none, and 1, after any failure.

    LINE ends at the cursor; BREAKS are bash's COMP_WORDBREAKS.
    """
    try:
        shell, text, *breaks = argv
        line = read_line(text, *breaks)
        answer = "\n".join(LINES[shell](line, complete(line.before, line.word)))
        sys.stdout.buffer.write(os.fsencode(answer + "\n"))
    except Exception:  # a message would stand in the middle of what is being typed
        return 1
    return 0


def _bash(line: Line, ways: Sequence[Way]) -> Iterator[str]:
    """A line of options for compopt, and the candidates without what readline keeps of the word."""
    found = [way for way in ways if isinstance(way, Candidate)]
    files = [file for way in ways if isinstance(way, Paths) for file in _paths(way, line.word)]
    spaced = not files and not line.is_quoted and any(not way.ends for way in found)
    open_ended = spaced or (len(found) == 1 and not files and not found[0].ends)
    # readline quotes and marks what it takes for file names.
    yield " ".join(["filenames"] * bool(files) + ["nospace"] * open_ended)
    for way in found:
        yield way.text.removeprefix(line.kept) + " " * (spaced and way.ends)
    for file in files:
        yield file.text.removesuffix("/").removeprefix(line.kept)


def _zsh(line: Line, ways: Sequence[Way]) -> Iterator[str]:
    """A kind, and for a candidate what `_describe` takes; zsh finds paths by itself."""
    for way in ways:
        if isinstance(way, Paths):
            yield f"{'folders' if way.folders_only else 'files'} {way.before}"
        else:
            text = way.text.replace("\\", "\\\\").replace(":", "\\:")
            about = f":{_shown(way.about)}" if way.about else ""
            yield f"{'closed' if way.ends else 'open'} {text}{about}"


def _fish(line: Line, ways: Sequence[Way]) -> Iterator[str]:
    """A candidate and its description; fish adds no space behind `=`, `.`, `:` and `/`."""
    if len(ways) == 1 and isinstance(ways[0], Candidate) and not ways[0].ends:
        item = ways[0].text
        if item[-1] not in "=.:":  # of a list: a single candidate would get a space
            ways = [Candidate(f"{item},", "another item"), Candidate(f"{item}]", "the end")]
    for way in ways:
        for candidate in _paths(way, line.word) if isinstance(way, Paths) else (way,):
            yield f"{candidate.text}\t{_shown(candidate.about)}".rstrip("\t")


LINES = {"bash": _bash, "zsh": _zsh, "fish": _fish}


def _paths(way: Paths, word: str) -> Iterator[Candidate]:
    """The user's files and folders that begin as the word does."""
    above, slash, name = word.removeprefix(way.before).rpartition("/")
    with os.scandir(os.path.expanduser(above + slash) or ".") as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if not entry.name.startswith(name) or entry.name.startswith(".") > name.startswith("."):
                continue
            if entry.is_dir():
                yield Candidate(f"{way.before}{above}{slash}{entry.name}/", ends=False)
            elif not way.folders_only:
                yield Candidate(f"{way.before}{above}{slash}{entry.name}")


def _shown(text: str) -> str:
    """A description in one line, in ASCII on a terminal that may show no more."""
    names = ("LC_ALL", "LC_CTYPE", "LANG")
    locale = next(filter(None, map(os.environ.get, names)), "C")
    text = " ".join(text.split())
    is_unicode = "utf" in locale.lower()
    return text if is_unicode else text.encode("ascii", "ignore").decode()
