"""A run's records on a disk that may be full: nothing is lost, and no line is cut in half."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bandpo.disk.whole import write_atomically
from bandpo.errors import UserError

MOST_WAITING = 256 * 2**20  # bytes


@dataclass(frozen=True)
class _Write:
    path: Path
    data: bytes
    append: bool

    def put(self) -> None:
        """Writes all of it or nothing; raises OSError where the disk refuses."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.append:
            self._append()
        else:
            write_atomically(self.path, self.data)

    def _append(self) -> None:
        with self.path.open("ab", buffering=0) as file:
            before = os.fstat(file.fileno()).st_size
            try:
                rest = memoryview(self.data)
                while len(rest):
                    rest = rest[file.write(rest) :]
                os.fsync(file.fileno())
            except OSError:
                file.truncate(before)
                raise


class Journal:
    """Writes lines and files in order; what a full disk refuses waits in memory and is retried.

    `say` reports when writes begin to wait and when all of them have been made. Raises UserError
    when more waits than memory should hold.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._waiting: list[_Write] = []

    def append(self, path: Path, text: str) -> None:
        """Adds text to the end of a file."""
        self._add(_Write(path, text.encode(), append=True))

    def write(self, path: Path, content: str | bytes) -> None:
        """Makes a file, in place of one that may be there."""
        data = content if isinstance(content, bytes) else content.encode()
        self._add(_Write(path, data, append=False))

    def flush(self) -> None:
        """Raises OSError unless everything is on the disk."""
        while self._waiting:
            self._waiting[0].put()
            self._waiting.pop(0)

    def _add(self, write: _Write) -> None:
        self._waiting.append(write)
        waited = len(self._waiting) > 1
        try:
            self.flush()
        except OSError as error:
            if sum(len(w.data) for w in self._waiting) > MOST_WAITING:
                raise UserError(
                    f"{write.path}: {error.strerror}, and more than {MOST_WAITING >> 20} MiB of "
                    "this run's records wait to be written; make room, then start it again: it "
                    "resumes from its last checkpoint"
                ) from None
            if not waited:
                self._say(
                    f"cannot write {write.path}: {error.strerror}; it waits in memory and is "
                    "retried at every step"
                )
        else:
            if waited:
                self._say("the records that waited in memory are on the disk now")
