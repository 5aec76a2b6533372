"""Files of a run folder: opened without following links, and their text as it may be shown."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from bandpo.redaction import redact

LONGEST_LINE = 32 * 2**20  # bytes; of a longer one the rest is skipped
# Controls but tab and line feed, and marks that turn the direction of the text behind them.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff]"
)


@contextmanager
def opened(folder: Path, *names: str) -> Iterator[BinaryIO]:
    """A regular file below a folder, for reading; each name is one component of its path.

    Raises OSError where there is none, or where a link stands in its place.
    """
    folders = [os.open(folder, os.O_RDONLY | os.O_DIRECTORY)]
    try:
        for name in names[:-1]:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
            folders.append(os.open(_component(name), flags, dir_fd=folders[-1]))
        # A pipe must not be waited for.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        handle = os.open(_component(names[-1]), flags, dir_fd=folders[-1])
    finally:
        for number in folders:
            os.close(number)
    with open(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise FileNotFoundError(f"{names[-1]} is no regular file")
        yield file


def _component(name: str) -> str:
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise FileNotFoundError(f"{name!r} is no name of a file")
    return name


def lines_of(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """(offset, line) of all lines from here on, except a last one that is not finished."""
    offset = file.tell()
    while line := file.readline(LONGEST_LINE):
        size = len(line)
        while not line.endswith(b"\n"):
            rest = file.readline(LONGEST_LINE)
            if not rest:
                return
            size += len(rest)
            line = b"\n" if rest.endswith(b"\n") else b""  # too long: what comes is no JSON
        yield offset, line
        offset += size


def tail(folder: Path, *names: str, size: int) -> str:
    """The whole lines in the last `size` bytes of a text; empty where there is no such file."""
    try:
        with opened(folder, *names) as file:
            start = max(0, os.fstat(file.fileno()).st_size - size)
            file.seek(start)
            data = file.read(size)
    except OSError:
        return ""
    return (data.partition(b"\n")[2] if start else data).decode("utf-8", "replace")


def stamp(path: Path) -> tuple[int, int, int]:
    """Inode, size and time of change: the same as long as the file is; zeros for none."""
    try:
        found = path.lstat()
    except OSError:
        return (0, 0, 0)
    return (found.st_ino, found.st_size, found.st_mtime_ns)


def shown(value: Any, longest: int | None = None) -> str:
    """A text without secrets, whose unseen characters are named, without its middle if too long."""
    text = redact(value if isinstance(value, str) else "" if value is None else str(value))
    if longest is not None and len(text) > longest:
        half = longest // 2
        left = len(text) - 2 * half
        text = f"{text[:half]}\n… {left:,} characters …\n{text[-half:]}"
    return _UNSEEN.sub(lambda found: f"‹U+{ord(found[0]):04X}›", text)
