"""Files and hub datasets become rows, each with its place, so that an error can name it."""

from __future__ import annotations

import csv
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from bandpo.disk.hub import asked_once
from bandpo.errors import UserError

logger = logging.getLogger(__name__)

# A cell may hold a long worked solution; the csv module's own limit is 128 KiB.
LONGEST_CELL = 2**31 - 1
_NARROW_FLOAT = re.compile(r"\b(half)?float\b")  # as pyarrow spells float16 and float32


class RowFault(Exception):
    """The reason why a row is not a problem; a file's faults are reported together."""


Rows = Iterable[tuple[str, Any]]  # (place such as "line 7", mapping or RowFault)


def jsonl_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """One JSON object per line; raises UserError for a JSON array of them."""
    with path.open("rb") as file:
        if file.peek(64).lstrip().startswith(b"["):
            raise UserError(
                f"{path}: a JSON array, where a .jsonl file has one object per line; write it as "
                f"such: {_to_lines(path)}"
            )
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                row = RowFault(f"invalid JSON: {error}")
            yield f"line {number}", row


def _to_lines(path: Path) -> str:
    """The command that writes a JSON array as lines."""
    code = "import json; [print(json.dumps(row)) for row in json.load(open('{}'))]"
    target = path.with_name(f"{path.stem}_lines.jsonl")
    return f'python -c "{code.format(path)}" > {target}'


def csv_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Rows under a header, comma-separated, UTF-8; the place is the line where a row begins.

    Raises `UserError` where a quote is broken: what follows cannot be divided into rows.
    """
    csv.field_size_limit(LONGEST_CELL)
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, strict=True)
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
                header = _header(cells, path)
            elif cells:
                yield f"line {begin}", _csv_row(header, cells)


def _header(cells: list[str], path: Path) -> list[str]:
    if any("\0" in cell for cell in cells):
        raise UserError(f"{path}: invalid CSV: not UTF-8 (UTF-16, it seems); save it as UTF-8")
    return cells


def _csv_row(header: list[str], cells: list[str]) -> dict[str, str | None] | RowFault:
    if len(cells) > len(header):
        return RowFault("more fields than the header has columns")
    for name, cell in zip(header, cells, strict=False):
        if "\0" in cell:
            return RowFault(f"invalid CSV: a NUL byte in column {name!r}")
        if any("\udc80" <= char <= "\udcff" for char in cell):
            return RowFault(f"invalid CSV: column {name!r} is not UTF-8")
    padded: list[str | None] = [*cells, *[None] * (len(header) - len(cells))]
    return dict(zip(header, padded, strict=True))


def parquet_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """The rows of a parquet file as Python values."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            exact = ExactFloats(file.schema_arrow)
            row = 0
            for batch in file.iter_batches():
                for value in batch.to_pylist():
                    row += 1
                    yield f"row {row}", exact(value)
    except pyarrow.ArrowException as error:
        raise UserError(f"{path}: not a readable parquet file: {error}") from error


def hub_rows(
    hub: str, subset: str | None, split: str, revision: str | None, place: str
) -> Iterator[tuple[str, Any]]:
    """The rows of a dataset on the Hugging Face hub, or in its local cache."""
    import datasets  # slow to import, and offline users of local files never need it

    try:
        with asked_once(hub):
            table = datasets.load_dataset(hub, subset, split=split, revision=revision)
    # The hub's client raises many types for one situation: this data cannot be had from here.
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(
            f"{place}: cannot load this dataset: {error}\n"
            "Check id, subset, split and revision; without network, name a local file instead."
        ) from error
    exact = ExactFloats(table.features.arrow_schema)
    for index, row in enumerate(table):
        yield f"row {index}", exact(row)


# By the extension of a file.
READERS: dict[str, Callable[[Path], Iterator[tuple[str, Any]]]] = {
    ".jsonl": jsonl_rows,
    ".parquet": parquet_rows,
    ".csv": csv_rows,
}


class ExactFloats:
    """Rows of an Arrow table with float16 and float32 as the decimals that they stand for.

    A float32 of 0.1 reads as 0.10000000149011612 in Python, which is another answer than 0.1; it
    becomes the shortest decimal that rounds to it in its own width.
    """

    def __init__(self, schema: Any) -> None:
        """`schema` is the `pyarrow.Schema` of the rows."""
        self._narrow = {f.name: f.type for f in schema if _NARROW_FLOAT.search(str(f.type))}

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The row with these columns made exact, inside structs and lists too."""
        return {**row, **{name: _exact(row[name], kind) for name, kind in self._narrow.items()}}


def _exact(value: Any, kind: Any) -> Any:
    from pyarrow import types

    if value is None:
        return None
    if types.is_dictionary(kind):
        return _exact(value, kind.value_type)
    if types.is_float16(kind) or types.is_float32(kind):
        return float(str(kind.to_pandas_dtype()(value)))
    if types.is_struct(kind) and isinstance(value, Mapping):
        return {field.name: _exact(value[field.name], field.type) for field in kind}
    if isinstance(value, list) and hasattr(kind, "value_type"):
        return [_exact(item, kind.value_type) for item in value]
    return value
