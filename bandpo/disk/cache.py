"""Where things that are made once are kept, and how they come to be seen only when complete."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from bandpo.errors import UserError

FORGOTTEN_S = 24 * 3600.0
"""Age of a folder of another machine's, which this one cannot see at work, when it is removed."""


def cache_dir() -> Path:
    """$BANDPO_CACHE, else ~/.cache/bandpo, else a folder of this user's own for temporary files.

    The last is for users without a home that can be written. Raises UserError where another user
    has made it.
    """
    if chosen := os.environ.get("BANDPO_CACHE"):
        return Path(chosen).expanduser()
    if usual := _below_home():
        return usual
    own = Path(tempfile.gettempdir()) / f"bandpo-{os.getuid()}"
    own.mkdir(mode=0o700, exist_ok=True)
    if own.is_symlink() or own.stat().st_uid != os.getuid():
        raise UserError(f"{own} is another user's: set BANDPO_CACHE to a folder of your own")
    return own


def _below_home() -> Path | None:
    """~/.cache/bandpo where it can be written."""
    with suppress(RuntimeError, OSError):  # a user without a home, or a home that is none
        usual = Path.home() / ".cache" / "bandpo"
        usual.mkdir(parents=True, exist_ok=True)
        if os.access(usual, os.W_OK | os.X_OK):
            return usual
    return None


def stand_in_for_home() -> None:
    """Has libraries keep what they would keep at home in the cache, where there is no home.

    vLLM, Triton and matplotlib write there as soon as they start. A model hub's cache that can be
    read stays where it is.
    """
    if _below_home():
        return
    with suppress(RuntimeError):
        hub = Path.home() / ".cache" / "huggingface"
        if os.access(hub, os.R_OK | os.X_OK):
            os.environ.setdefault("HF_HOME", str(hub))
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "TRITON_HOME", "MPLCONFIGDIR"):
        os.environ.setdefault(name, str(cache_dir()))


@contextmanager
def made_aside(folder: Path) -> Iterator[Path]:
    """A new folder to fill, which becomes `folder` when the block ends well.

    Whoever looks sees all of it or nothing. Of several that make the same one the first wins, and
    the others take its. What a process that was killed has left of it is removed.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(folder)
    aside, handle = _new_folder(folder)
    try:
        yield aside
        try:
            aside.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        os.close(handle)
        shutil.rmtree(aside, ignore_errors=True)


def _new_folder(folder: Path) -> tuple[Path, int]:
    """A locked folder beside this one, and the handle that holds the lock while it is open."""
    while True:
        aside = folder.with_name(f"{folder.name}.{socket.gethostname()}-{uuid4().hex}")
        aside.mkdir()
        with suppress(FileNotFoundError):  # another took it for abandoned before it was locked
            handle = os.open(aside, os.O_RDONLY)
            with suppress(OSError):  # not every network file system can lock a folder
                fcntl.flock(handle, fcntl.LOCK_SH)
            if aside.exists():
                return aside, handle
            os.close(handle)


def _remove_abandoned(folder: Path) -> None:
    """Removes what nobody goes on making: unlocked, and of this machine or old."""
    made = re.compile(rf"{re.escape(folder.name)}\.(?:\d+|(.+)-[0-9a-f]{{32}})")
    for path in folder.parent.glob("*"):
        match = made.fullmatch(path.name)
        with suppress(OSError):  # locked, without locks, or removed by another that was quicker
            if match and (match[1] == socket.gethostname() or _age(path) > FORGOTTEN_S):
                _remove_unlocked(path)


def _remove_unlocked(folder: Path) -> None:
    """Raises OSError where somebody holds the lock, or where it cannot be told."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder)  # while the lock is held: its maker may just be about to take it
    finally:
        os.close(handle)


def _age(path: Path) -> float:
    """Seconds since it last changed."""
    return time.time() - path.stat().st_mtime
