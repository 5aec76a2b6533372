"""Tables of Arrow: parquet files, Arrow files and hub datasets."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from bandpo.disk.hub import asked_once
from bandpo.errors import UserError

_NARROW_FLOAT = re.compile(r"\b(half)?float\b")  # as pyarrow spells float16 and float32


def parquet_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """The rows of a parquet file as Python values."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield from _numbered(file.schema_arrow, file.iter_batches())
    except pyarrow.ArrowException as error:
        raise UserError(f"{path}: not a readable parquet file: {error}") from error


def arrow_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """The rows of an Arrow file or stream; the datasets library writes streams."""
    import pyarrow

    try:
        with pyarrow.memory_map(str(path)) as file:
            try:
                table = pyarrow.ipc.open_file(file)
                batches = map(table.get_batch, range(table.num_record_batches))
            except pyarrow.ArrowInvalid:
                file.seek(0)
                table = batches = pyarrow.ipc.open_stream(file)
            yield from _numbered(table.schema, batches)
    except pyarrow.ArrowException as error:
        raise UserError(f"{path}: not a readable Arrow file: {error}") from error


def _numbered(schema: Any, batches: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    exact = ExactFloats(schema)
    row = 0
    for batch in batches:
        for value in batch.to_pylist():
            row += 1
            yield f"row {row}", exact(value)


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
