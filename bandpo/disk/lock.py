"""The lock of a run's folder: one process at a time."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bandpo.disk.space import require_folder
from bandpo.errors import UserError

NAME = "lock"


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Holds the folder's lock; raises UserError if another process has it.

    The system releases it when its holder ends, however that happens.
    """
    require_folder(folder, "run.dir=")
    with (folder / NAME).open("w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder}: another process is training in this folder") from None
        yield


def is_held(folder: Path) -> bool:
    """Whether a process has the folder's lock."""
    try:
        with (folder / NAME).open("r+", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def wait_until_free(folder: Path) -> None:
    """Returns once no process has the folder's lock."""
    if (folder / NAME).exists():
        with (folder / NAME).open("r+", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
