"""The bytes of a text file: decompressed, without a byte order mark, and refused in UTF-16."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from bandpo.errors import UserError

COMPRESSED = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
"""pyarrow's codecs by the extension behind that of the format."""
_WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)
_LOOKED_AT = 64  # bytes; of Latin text in UTF-16 every other one is a NUL


@contextmanager
def opened(path: Path) -> Iterator[io.BufferedReader]:
    """A text file's bytes from behind its byte order mark.

    Raises `UserError` where it cannot be decompressed, or is UTF-16 or UTF-32.
    """
    codec = COMPRESSED.get(path.suffix.lower())
    if codec is None:
        with path.open("rb") as file:
            yield _checked(file, path)
        return
    import pyarrow

    try:
        with pyarrow.input_stream(str(path), compression=codec) as stream:
            # It is a raw stream in all but its type.
            yield _checked(io.BufferedReader(cast(Any, stream)), path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read as {codec}: {error}") from error


def _checked(file: io.BufferedReader, path: Path) -> io.BufferedReader:
    head = file.peek(_LOOKED_AT)[:_LOOKED_AT]
    if head.startswith(_WIDE) or 4 * head.count(0) > len(head):
        target = path.with_name(f"{path.stem}_utf8{path.suffix}")
        way = f": iconv -f UTF-16 -t UTF-8 {path} > {target}"
        raise UserError(
            f"{path}: not UTF-8 (UTF-16, it seems); save it as UTF-8"
            + (way if path.suffix.lower() not in COMPRESSED else "")
        )
    if head.startswith(codecs.BOM_UTF8):
        file.read(len(codecs.BOM_UTF8))
    return file
