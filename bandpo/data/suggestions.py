"""Overrides that read a dataset which cannot be read as it is, each found by trying it."""

from __future__ import annotations

import logging
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import fmean
from typing import Any

from bandpo.data.columns import Columns, lookup, override, paths
from bandpo.data.conversations import messages_in
from bandpo.data.layouts import AFTER_HASHES, ANSWERS, PROBLEMS, is_alone, last_box
from bandpo.data.rows import as_columns, parse_rows
from bandpo.data.sources import FileSource, HubSource
from bandpo.errors import UserError
from bandpo.types import Problem

LOOKED_AT = 200  # rows that a mapping is chosen by
MOST_TRIED = 6  # columns of a role
MOST_SHOWN = 3
# Ends of worked solutions, in the order in which they are tried.
ENDINGS = (AFTER_HASHES, r"<answer>\s*(.+?)\s*</answer>", r"(?i)answer(?: is|:)\s*(.+?)\.?\s*$")
_ASKING = re.compile(r"problem|question|prompt|quer|instruct|input|task|frage|aufgabe", re.I)
_ANSWERING = re.compile(r"answer|truth|gold|solution|result|target|label|output|antwort", re.I)
_NEITHER = re.compile(r"(^|\.)(\w*id|index|role|from|type|style|split|\w*source)$", re.I)

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Suggestion:
    """Columns with which a source can be read, and how many of its rows."""

    source: FileSource | HubSource
    columns: Mapping[str, Any]
    read: int
    rows: int
    first: Problem

    @property
    def overrides(self) -> str:
        """The words of a command line that read the source so, quoted for a shell."""
        words = [override(role, value) for role, value in self.columns.items()]
        if self.read < self.rows:
            words.append(_dropping_bad_rows(self.source))
        return " ".join(words)

    def __str__(self) -> str:
        """The overrides, and the first problem as it is read with them."""
        question, answer = (_short(text) for text in (self.first.problem, self.first.answer))
        counted = f"{self.read} of {self.rows} rows, the first: {question} → {answer}"
        return f"{self.overrides}\n      {counted}"


def suggestions(source: FileSource | HubSource) -> list[Suggestion]:
    """Mappings of columns that read the most rows of a source, the likeliest first.

    Empty where its rows cannot be had, or no mapping reads any.
    """
    try:
        rows = [(place, as_columns(row)) for place, row in source.rows()]
    except UserError:
        return []
    own, sample = source.columns, rows[:LOOKED_AT]
    shown = [row for _, row in sample if isinstance(row, Mapping)]
    tried = [(named, len(_read(sample, own.but(named)))) for named in _mappings(shown, own)]
    most = max((count for _, count in tried), default=0)
    best = (named for named, count in tried if count == most > 0)
    return [
        Suggestion(source, named, len(problems), len(rows), problems[0])
        for named in islice(best, MOST_SHOWN)
        if (problems := _read(rows, own.but(named)))
    ]


def _read(rows: Sequence[tuple[str, Any]], columns: Columns) -> list[Problem]:
    """The problems that columns find in rows; bad rows are skipped, without a warning."""
    logger = logging.getLogger(parse_rows.__module__)
    was, logger.disabled = logger.disabled, True
    try:
        return parse_rows(rows, columns, "", "", bad_rows="drop")
    except UserError:
        return []
    finally:
        logger.disabled = was


def _mappings(rows: Sequence[Row], columns: Columns) -> Iterator[dict[str, Any]]:
    """Pairs of columns that may hold problem and answer, and how the answer may stand in its own.

    Those that are named, or that have the usual name, are kept; the first mapping names nothing.
    """
    yield {}
    texts = {path: _texts(rows, path) for path in _columns(rows)}
    asking = {path: found for path, found in texts.items() if _asks(rows, path)}
    for answer in _candidates(columns, "answer", texts, ANSWERS, _ANSWERING, 1):
        for problem in _candidates(columns, "problem", asking, PROBLEMS, _ASKING, -1):
            if problem != answer:
                pair = {"problem": problem, "answer": answer}
                named = {
                    role: name for role, name in pair.items() if name != getattr(columns, role)
                }
                yield from (named | form for form in _forms(texts.get(answer, [])))


def _columns(rows: Sequence[Row]) -> list[str]:
    """Whole conversations, and the single values inside all columns, but not those of ids."""
    found: dict[str, None] = {}
    for row in rows:
        for name, value in row.items():
            if messages_in(value) is not None:
                found[name] = None
            found |= dict.fromkeys(islice(paths(value, name), 2 * MOST_TRIED))
    return [path for path in found if not _NEITHER.search(path) and _differs(rows, path)]


def _differs(rows: Sequence[Row], path: str) -> bool:
    """Whether a column has not one text throughout, as a system turn or a label has."""
    texts = _texts(rows, path)
    return len(texts) < 2 or len(set(texts)) > 1


def _asks(rows: Sequence[Row], path: str) -> bool:
    values = [lookup(row, path) for row in rows]
    return any(isinstance(value, str) or messages_in(value) is not None for value in values)


def _texts(rows: Sequence[Row], path: str) -> list[str]:
    values = (lookup(row, path) for row in rows)
    return [str(v) for v in values if isinstance(v, str | int | float) and not isinstance(v, bool)]


def _candidates(
    columns: Columns,
    role: str,
    texts: Mapping[str, Sequence[str]],
    known: Sequence[Sequence[str]],
    likely: re.Pattern[str],
    sign: int,
) -> list[str]:
    """Columns by name, then by the length of their texts: long ones ask, short ones answer."""
    own = getattr(columns, role)
    if role in columns.model_fields_set or own in texts:
        return [own]
    names = [name for group in known for name in group]

    def rank(path: str) -> tuple[Any, ...]:
        place = names.index(path) if path in names else len(names)
        fits = likely.search(path) or (sign > 0 and any(map(_ends, texts[path])))
        return (place, not fits, sign * fmean(map(len, texts[path] or [""])))

    return sorted(texts, key=rank)[:MOST_TRIED]


def _ends(text: str) -> bool:
    """Whether a text looks like a worked solution with its answer at the end."""
    return last_box(text) is not None or any(re.search(ending, text) for ending in ENDINGS)


def _forms(texts: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The ways in which an answer may stand in a column's texts, the likeliest first."""
    if is_alone(texts) and not all(map(_ends, texts)):
        yield {}
    if any(map(last_box, texts)):
        yield {"answer_in_box": True}
    yield from (
        {"answer_pattern": ending}
        for ending in ENDINGS
        if any(re.search(ending, text) for text in texts)
    )


def _dropping_bad_rows(source: FileSource | HubSource) -> str:
    settings = source.model_dump(mode="json", exclude_unset=True, exclude={"columns", "bad_rows"})
    inner = ", ".join(f'{name}: "{value}"' for name, value in settings.items() if value is not None)
    return shlex.quote(f"data.train={{{inner}, bad_rows: drop}}")


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else f"{line[:59]}…"
