"""Rows become problems; rows that cannot are reported with their place."""

from __future__ import annotations

import hashlib
import logging
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from itertools import islice
from typing import Any, Literal

import numpy as np

from bandpo.data.columns import Columns, lookup, paths
from bandpo.data.conversations import conversation, messages_in, spoken
from bandpo.data.layouts import last_box, recognised
from bandpo.data.readers import RowFault, Rows
from bandpo.errors import UserError
from bandpo.types import Problem, Turn

logger = logging.getLogger(__name__)

# Not str.strip(): a leading form feed or tab is the rest of a mangled \frac or \text: it is kept.
MARGIN = " \r\n"
MAX_LISTED = 20  # bad rows spelled out in one error; the rest are counted


BadRows = Literal["error", "drop"]


def parse_rows(
    rows: Rows, columns: Columns, place: str, name: str, bad_rows: BadRows = "error"
) -> list[Problem]:
    """Problems from rows; raises one `UserError` for everything wrong with them.

    With `bad_rows="drop"` bad rows are skipped and logged; no good row, or a missing column, is
    still an error.
    """
    entries = [(where, as_columns(row)) for where, row in rows]
    if not entries:
        raise UserError(f"{place}: no rows")
    shown = [row for _, row in entries if isinstance(row, Mapping)]
    columns = recognised(shown, columns, place) if shown else columns
    problems: list[Problem] = []
    faults: list[str] = []
    first_use: dict[str, str] = {}
    repeats: Counter[str] = Counter()
    for where, row in entries:
        try:
            problem = _problem(row, columns, name, repeats)
            if problem.id in first_use:
                raise RowFault(f"duplicate id {problem.id!r}, first at {first_use[problem.id]}")
        except RowFault as fault:
            faults.append(f"{where}: {fault}")
            continue
        first_use[problem.id] = where
        problems.append(problem)
    if faults:
        error = unusable(place, faults, len(entries))
        if bad_rows == "error" or not problems:
            raise error
        logger.warning("skipped: %s", error)
    return problems


def unusable(place: str, faults: Sequence[str], total: int) -> UserError:
    """The error for a dataset with unusable rows: the first of them, and how many there are."""
    listed = [*faults[:MAX_LISTED]]
    if len(faults) > MAX_LISTED:
        listed.append(f"… and {len(faults) - MAX_LISTED} more")
    return UserError.join(f"{place}: {len(faults)} of {total} rows cannot be used", listed)


def as_columns(row: Any) -> Any:
    """A row that is a list of objects as one with the columns 0, 1, …, as the hub shows it."""
    if isinstance(row, list) and row and all(isinstance(item, Mapping) for item in row):
        return {str(index): item for index, item in enumerate(row)}
    return row


def _problem(row: Any, columns: Columns, name: str, repeats: Counter[str]) -> Problem:
    if isinstance(row, RowFault):
        raise row
    if not isinstance(row, Mapping):
        raise RowFault(f"expected an object with columns, got {type(row).__name__}")
    turns, text = _question(lookup(row, columns.problem), columns.problem)
    answer = _answer(row, columns)
    try:
        "".join([*(turn.content for turn in turns), text, answer]).encode()
    except UnicodeEncodeError as error:
        raise RowFault(f"no valid Unicode, which no tokenizer takes: {error}") from None
    given = lookup(row, columns.id)
    if given is None or given == "":
        key = content_id(text, answer, turns)
        repeats[key] += 1  # a repeated row stays distinguishable; cleaning decides about it
        given = key if repeats[key] == 1 else f"{key}-{repeats[key]}"
    roles = {columns.id, columns.problem, columns.answer, "source"}
    meta = {key: value for key, value in _scalars(row) if key not in roles}
    sources = (row.get("source"), row.get("data_source"))  # verl's is the second
    return Problem(
        id=str(given),
        problem=text.strip(MARGIN),
        answer=answer,
        source=next((s for s in sources if isinstance(s, str) and s), name),
        meta=meta,
        turns=turns,
    )


def _question(value: Any, column: str) -> tuple[tuple[Turn, ...], str]:
    """The problem's text, and of a conversation the turns before it."""
    if (messages := messages_in(value)) is not None:
        return conversation(messages, column)
    if value is not None and not isinstance(value, str):
        inner = ", ".join(islice(paths(value, column), MAX_LISTED))
        raise RowFault(
            f"problem ({column}) is not text but {type(value).__name__}; "
            f"it holds {inner or 'no values'}: name one with data.columns.problem=…"
        )
    if value is None or not value.strip():
        raise RowFault(f"no problem ({column})")
    return (), str(value)


def _scalars(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Columns that hold a single value, nested ones under their dotted path."""
    for key, value in row.items():
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{prefix}{key}.")
        elif isinstance(value, str | int | float | bool):
            yield f"{prefix}{key}", value


def _answer(row: Mapping[str, Any], columns: Columns) -> str:
    """The reference answer as text."""
    value = lookup(row, columns.answer)
    if columns.join_answers and isinstance(value, list | tuple | np.ndarray) and len(value):
        item = columns.model_copy(update={"answer": "0", "join_answers": False})
        return ", ".join(_answer({"0": part}, item) for part in value)
    value = _single(value, columns.answer)
    if isinstance(value, np.generic):
        value = float(str(value)) if isinstance(value, np.floating) else value.item()
    number = isinstance(value, int | float | Decimal) and not isinstance(value, bool)
    missing = value is None or (number and not math.isfinite(value))
    if missing or (isinstance(value, str) and not value.strip()):
        raise RowFault(f"no answer ({columns.answer})")
    if not number and not isinstance(value, str):
        inner = ", ".join(islice(paths(value, columns.answer), MAX_LISTED))
        raise RowFault(
            f"answer ({columns.answer}) is neither text nor number but {type(value).__name__}"
            + (f"; it holds {inner}" if isinstance(value, Mapping) and inner else "")
        )
    answer = _digits(value) if number else value.strip(MARGIN)
    if columns.answer_in_box:
        boxed = last_box(answer)
        if boxed is None:
            raise RowFault(rf"answer ({columns.answer}) has no \boxed{{}}")
        answer = boxed
    if columns.answer_pattern is None:
        return answer
    found = re.search(columns.answer_pattern, answer)
    inner = found.group(1).strip() if found else ""
    if not inner:
        raise RowFault(f"answer ({columns.answer}) does not match {columns.answer_pattern!r}")
    return inner


def _single(value: Any, column: str) -> Any:
    """The one answer of a list; raises `RowFault` for several, as a completion is held to one."""
    if isinstance(value, np.ndarray):
        value = list(value) if value.ndim else value[()]
    if not isinstance(value, list | tuple):
        return value
    if len(value) > 1:
        raise RowFault(
            f"answer ({column}) is a list of {len(value)}, and a completion is compared with one "
            f"answer; data.columns.answer={column}.0 takes the first"
        )
    return value[0] if len(value) else None


def _digits(number: int | float | Decimal) -> str:
    """A number in plain digits: 27.0 is 27, the decimal 0.50 is 0.5, and 1e-05 is 0.00001."""
    text = format(Decimal(str(number)), "f")
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def content_id(problem: str, answer: str, turns: Sequence[Turn] = ()) -> str:
    """An id that follows from the content: sha256 of turns and answer, white space collapsed."""
    parts = (*spoken(turns), problem, answer)
    canonical = "\0".join(" ".join(text.split()) for text in parts)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
