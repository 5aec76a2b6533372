"""Files, links and folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of `path` when the block ends without an error.

    Readers see the old file or the new one; of a block that raises, nothing is left.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    aside.unlink(missing_ok=True)
    try:
        yield aside
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def remove_partial(folder: Path) -> None:
    """Removes what killed processes were writing in a folder: files, links and whole folders."""
    for left in list(folder.rglob(".*.partial")):
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left)
        else:
            left.unlink(missing_ok=True)  # it may have been in such a folder


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file and flushes it to the disk before it takes the place of an older one."""
    data = content.encode() if isinstance(content, str) else content
    with replacing(path) as aside, aside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def publish_folder(aside: Path, folder: Path) -> None:
    """Moves a complete folder to its place, instead of one that may be there; both are siblings."""
    if folder.exists():
        shutil.rmtree(folder)
    aside.rename(folder)
    flush_folder(folder.parent)


def flush_folder(folder: Path) -> None:
    """Waits until the names in a folder are on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
