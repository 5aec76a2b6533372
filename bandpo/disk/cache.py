"""The cache of things that are made once, each visible only when it is complete."""

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
"""Age at which another machine's unfinished folder, whose maker cannot be seen, is removed."""


def cache_dir() -> Path:
    """$BANDPO_CACHE, else ~/.cache/bandpo, else this user's own folder among temporary files.

    The last is for users without a writable home. Raises UserError where another user made it.
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
    """~/.cache/bandpo if it is writable."""
    with suppress(RuntimeError, OSError):  # no home, or none that exists
        usual = Path.home() / ".cache" / "bandpo"
        usual.mkdir(parents=True, exist_ok=True)
        if os.access(usual, os.W_OK | os.X_OK):
            return usual
    return None


def stand_in_for_home() -> None:
    """Points libraries that write to the home folder to the cache, where there is no home.

    vLLM, Triton and matplotlib do so as soon as they start. A model hub's cache that can be read
    stays where it is.
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
    """A new folder to fill, which becomes `folder` when the block ends without an error.

    Readers see all of it or nothing. Of several processes that make the same folder the first wins,
    and the others use its result. Leftovers of killed processes are removed.
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
        with suppress(FileNotFoundError):  # removed as abandoned before it was locked
            handle = os.open(aside, os.O_RDONLY)
            with suppress(OSError):  # not every network file system can lock a folder
                fcntl.flock(handle, fcntl.LOCK_SH)
            if aside.exists():
                return aside, handle
            os.close(handle)


def _remove_abandoned(folder: Path) -> None:
    """Removes unfinished folders: unlocked ones of this machine, or old ones."""
    made = re.compile(rf"{re.escape(folder.name)}\.(?:\d+|(.+)-[0-9a-f]{{32}})")
    for path in folder.parent.glob("*"):
        match = made.fullmatch(path.name)
        with suppress(OSError):  # locked, cannot be locked, or already removed
            if match and (match[1] == socket.gethostname() or _age(path) > FORGOTTEN_S):
                _remove_unlocked(path)


def _remove_unlocked(folder: Path) -> None:
    """Raises OSError if the folder is locked, or if that cannot be found out."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder)  # while the lock is held: its maker may be about to take it
    finally:
        os.close(handle)


def _age(path: Path) -> float:
    """Seconds since its last change."""
    return time.time() - path.stat().st_mtime
