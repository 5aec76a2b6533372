"""Rows become problems; rows that cannot are reported with their place."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from itertools import islice
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from bandpo.data.readers import RowFault, Rows
from bandpo.errors import UserError
from bandpo.types import Problem

logger = logging.getLogger(__name__)

# Not str.strip(): a leading form feed or tab is the rest of a mangled \frac or \text: it is kept.
MARGIN = " \r\n"
MAX_LISTED = 20  # bad rows spelled out in one error; the rest are counted


class Columns(BaseModel):
    """Which columns hold what.

    A dot descends into structs, lists and JSON text: `reward_model.ground_truth`, or
    `prompt.0.content` where the prompt is a list of messages.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(
        default="id", description="unique id; rows without one get an id from their content"
    )
    problem: str = Field(default="problem", description="the question as text")
    answer: str = Field(default="answer", description="the reference answer as text or number")
    answer_pattern: str | None = Field(
        default=None,
        description="regular expression whose first group is the answer inside the column",
    )


BadRows = Literal["error", "drop"]


def parse_rows(
    rows: Rows, columns: Columns, place: str, name: str, bad_rows: BadRows = "error"
) -> list[Problem]:
    """Problems from rows; raises one `UserError` for everything wrong with them.

    With `bad_rows="drop"` bad rows are skipped and logged; no good row, or a missing column, is
    still an error.
    """
    entries = list(rows)
    if not entries:
        raise UserError(f"{place}: no rows")
    _require_columns([row for _, row in entries if isinstance(row, Mapping)], columns, place)
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


def _lookup(value: Any, path: str, absent: Any = None) -> Any:
    """The value at a column's path, or `absent`.

    A dot descends where no column has the full name: into mappings, by position into lists and
    arrays, and into either that a text holds as JSON.
    """
    if isinstance(value, str):
        value = _json(value)
    if isinstance(value, Mapping) and path in value:
        return value[path]
    head, _, rest = path.partition(".")
    if isinstance(value, Mapping):
        inner = value.get(head, absent)
    elif re.fullmatch(r"-?\d+", head) and hasattr(value, "__getitem__"):
        inner = value[int(head)] if -len(value) <= int(head) < len(value) else absent
    else:
        return absent
    return _lookup(inner, rest, absent) if rest and inner is not absent else inner


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _paths(value: Any, path: str) -> Iterator[str]:
    """The paths that can be named inside a column's value."""
    if isinstance(value, str) and isinstance(_json(value), dict | list):
        value = _json(value)
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _paths(inner, f"{path}.{key}")
    elif hasattr(value, "__getitem__") and not isinstance(value, str):
        for index, inner in enumerate(value):
            yield from _paths(inner, f"{path}.{index}")
    else:
        yield path


def _require_columns(rows: Sequence[Mapping[str, Any]], columns: Columns, place: str) -> None:
    """Raises one `UserError`, instead of one fault per row, where a column does not exist."""
    if not rows:
        return
    names = sorted({name for row in rows for name in row})
    absent = object()
    missing = [
        f"no column {column!r}; name another with columns.{role}=…{_inside(rows, column)}"
        for role, column in (("problem", columns.problem), ("answer", columns.answer))
        if all(_lookup(row, column, absent) is absent for row in rows)
    ]
    if missing:
        raise UserError.join(f"{place} has the columns {', '.join(names)}", missing)


def _inside(rows: Sequence[Mapping[str, Any]], column: str) -> str:
    """The paths inside a nested column, to name where the given one does not exist."""
    head = column.partition(".")[0]
    values = (row[head] for row in rows if row.get(head) is not None)
    paths = [
        path for value in islice(values, 1) for path in islice(_paths(value, head), MAX_LISTED)
    ]
    return f" ({head} has {', '.join(paths)})" if paths else ""


def _problem(row: Any, columns: Columns, name: str, repeats: Counter[str]) -> Problem:
    if isinstance(row, RowFault):
        raise row
    if not isinstance(row, Mapping):
        raise RowFault(f"expected an object with columns, got {type(row).__name__}")
    text = _lookup(row, columns.problem)
    if text is not None and not isinstance(text, str):
        inner = ", ".join(islice(_paths(text, columns.problem), MAX_LISTED))
        raise RowFault(
            f"problem ({columns.problem}) is not text but {type(text).__name__}; "
            f"it holds {inner or 'no values'}: name one with columns.problem=…"
        )
    if text is None or not text.strip():
        raise RowFault(f"no problem ({columns.problem})")
    answer = _answer(row, columns)
    try:
        (text + answer).encode()
    except UnicodeEncodeError as error:
        raise RowFault(f"no valid Unicode, which no tokenizer takes: {error}") from None
    given = _lookup(row, columns.id)
    if given is None or given == "":
        key = content_id(text, answer)
        repeats[key] += 1  # a repeated row stays distinguishable; cleaning decides about it
        given = key if repeats[key] == 1 else f"{key}-{repeats[key]}"
    roles = {columns.id, columns.problem, columns.answer, "source"}
    meta = {key: value for key, value in _scalars(row) if key not in roles}
    source = row.get("source")
    return Problem(
        id=str(given),
        problem=text.strip(MARGIN),
        answer=answer,
        source=source if isinstance(source, str) and source else name,
        meta=meta,
    )


def _scalars(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Columns that hold a single value, nested ones under their dotted path."""
    for key, value in row.items():
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{prefix}{key}.")
        elif isinstance(value, str | int | float | bool):
            yield f"{prefix}{key}", value


def _answer(row: Mapping[str, Any], columns: Columns) -> str:
    """The reference answer as text."""
    value = _lookup(row, columns.answer)
    if isinstance(value, np.generic):
        value = float(str(value)) if isinstance(value, np.floating) else value.item()
    number = isinstance(value, int | float | Decimal) and not isinstance(value, bool)
    missing = value is None or (number and not math.isfinite(value))
    if missing or (isinstance(value, str) and not value.strip()):
        raise RowFault(f"no answer ({columns.answer})")
    if not number and not isinstance(value, str):
        raise RowFault(
            f"answer ({columns.answer}) is neither text nor number but {type(value).__name__}"
        )
    answer = _digits(value) if number else value.strip(MARGIN)
    if columns.answer_pattern is None:
        return answer
    found = re.search(columns.answer_pattern, answer)
    inner = found.group(1).strip() if found else ""
    if not inner:
        raise RowFault(f"answer ({columns.answer}) does not match {columns.answer_pattern!r}")
    return inner


def _digits(number: int | float | Decimal) -> str:
    """A number in plain digits: 27.0 is 27, the decimal 0.50 is 0.5, and 1e-05 is 0.00001."""
    text = format(Decimal(str(number)), "f")
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def content_id(problem: str, answer: str) -> str:
    """An id that follows from the content: sha256 of problem and answer, white space collapsed."""
    canonical = "\0".join(" ".join(text.split()) for text in (problem, answer))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
