"""The disk: folders to write to, which may not exist yet, and its refusals in words."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bandpo.errors import UserError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG}


@contextmanager
def refusals_in_words(place: str = "") -> Iterator[None]:
    """Raises UserError, which names the file or `place`, where a disk is full or may not be
    written to; every other error is left as it is."""
    try:
        yield
    except OSError as error:
        where = str(error.filename or place)
        if error.errno in _FULL:
            raise UserError(
                f"{where or 'a file could not be written'}: {error.strerror}: make room on that "
                "disk, or write to another"
            ) from error
        if error.errno in _FORBIDDEN and where:
            raise UserError(f"{where}: {error.strerror}") from error
        raise


def require_folder(folder: Path, name: str) -> None:
    """Makes a folder; raises UserError, which names the setting, where that cannot be done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{name}{folder}: no folder can be made there ({error.strerror}); choose a place that "
            "can be written to"
        ) from None


def nearest_existing(path: Path) -> Path:
    """The path itself, or the nearest one above it that exists."""
    path = path.absolute()
    return next(place for place in (path, *path.parents) if place.exists())


def free_gib(folder: Path) -> float:
    """GiB that are free where the folder is, or will be."""
    return shutil.disk_usage(nearest_existing(folder)).free / 2**30
