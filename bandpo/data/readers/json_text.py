"""JSON: a value per line, one list of rows, or an object that holds one."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bandpo.data.readers.faults import RowFault
from bandpo.data.readers.opening import opened
from bandpo.errors import UserError

_INK = re.compile(rb"\S")


def json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """The rows of JSON lines or of one JSON document, whatever the file's name says.

    Raises `UserError` for a list that is broken: what follows cannot be divided into rows.
    """
    with opened(path) as file:
        content = file.read()
    rows = _document(content, path)
    if rows is not None:
        yield from ((f"row {number}", row) for number, row in enumerate(rows, 1))
        return
    for number, line in enumerate(io.BytesIO(content), 1):
        if line.strip():
            yield f"line {number}", _value(line)


def _value(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        return RowFault(f"invalid JSON: {error}")


def _document(content: bytes, path: Path) -> list[Any] | None:
    """The rows of a file that is one JSON value; None where every line has its own."""
    begin = _INK.search(content)
    if begin is None:
        return []
    end = content.find(b"\n", begin.start()) % (len(content) + 1)
    value = _value(content[begin.start() : end])
    if _INK.search(content, end):
        if not isinstance(value, RowFault):
            return None
        value = _value(content)
    if isinstance(value, RowFault) and begin.group() == b"[":
        raise UserError(f"{path}: a JSON list that cannot be read: {value}")
    if isinstance(value, Mapping):
        return _rows_within(value)
    return value if isinstance(value, list) else None


def _rows_within(value: Mapping[str, Any]) -> list[Any] | None:
    """The rows of an object: its one list of objects, or pandas' columns; None if it is a row."""
    lists = [inner for inner in value.values() if _is_table(inner)]
    if len(lists) == 1 and not any(isinstance(inner, str) for inner in value.values()):
        return lists[0]
    indices = {tuple(i) if isinstance(i, Mapping) else () for i in value.values()}
    if len(indices) == 1 and (index := indices.pop()) and all(key.isdecimal() for key in index):
        return [{name: column[key] for name, column in value.items()} for key in index]
    return None


def _is_table(value: Any) -> bool:
    """Whether a value is a list of objects that are no messages of a conversation."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(row, Mapping) and not {"role", "from"} & row.keys() for row in value)
    )
