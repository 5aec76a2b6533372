"""CSV and TSV: rows under a header, in UTF-8."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from bandpo.data.readers.faults import RowFault
from bandpo.data.readers.opening import opened
from bandpo.errors import UserError

# A cell may hold a long worked solution; the csv module's own limit is 128 KiB.
LONGEST_CELL = 2**31 - 1


def comma_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Rows separated by commas, or by semicolons or tabs where the header has no comma."""
    return _rows(path, ",;\t")


def tab_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Rows separated by tabs, or by commas or semicolons where the header has no tab."""
    return _rows(path, "\t,;")


def _rows(path: Path, delimiters: str) -> Iterator[tuple[str, Any]]:
    """The place is the line where a row begins.

    Raises `UserError` where a quote is broken: what follows cannot be divided into rows.
    """
    csv.field_size_limit(LONGEST_CELL)
    with opened(path) as file:
        text = io.TextIOWrapper(file, "utf-8", errors="surrogateescape", newline="")
        head = text.readline()
        delimiter = next((d for d in delimiters if d in head), delimiters[0])
        reader = csv.reader(chain([head], text), strict=True, delimiter=delimiter)
        header: list[str] | None = None
        while True:
            begin = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise UserError(
                    f"{path}: invalid CSV: {error}, in the row that begins at line {begin}; the "
                    'rows after it cannot be read, so fix its quotes ("" is a quote in a cell)'
                ) from error
            if header is None:
                header = cells
            elif cells:
                yield f"line {begin}", _row(header, cells)


def _row(header: list[str], cells: list[str]) -> dict[str, str | None] | RowFault:
    if len(cells) > len(header):
        return RowFault("more fields than the header has columns")
    for name, cell in zip(header, cells, strict=False):
        if "\0" in cell:
            return RowFault(f"invalid CSV: a NUL byte in column {name!r}")
        if any("\udc80" <= char <= "\udcff" for char in cell):
            return RowFault(f"invalid CSV: column {name!r} is not UTF-8")
    padded: list[str | None] = [*cells, *[None] * (len(header) - len(cells))]
    return dict(zip(header, padded, strict=True))
