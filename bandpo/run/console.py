"""The streams of a run: stdout and stderr that it outlives, and run.log, which keeps all of it.

Imports the standard library alone.
"""

from __future__ import annotations

import ctypes
import io
import os
import select
import shutil
import socket
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from bandpo.errors import RunHalted, UserError
from bandpo.redaction import redact

STREAMS = ((1, "stdout"), (2, "stderr"))


class _Lossy(io.FileIO):
    """A descriptor whose writes never fail: data that it does not take is lost.

    Its reader may have gone (`| head`), its disk may be full, its terminal closed.
    """

    def write(self, data: Any) -> int:
        try:
            while (written := super().write(data)) is None:  # full, and non-blocking
                select.select([], [self], [])
            return written
        except OSError:
            return memoryview(data).nbytes


def protect_output() -> None:
    """Replaces stdout and stderr by streams that raise nothing, whatever is behind them.

    Characters that their encoding lacks are written as escapes. A descriptor that was closed
    (`>&-`) is opened on /dev/null: else the next file opened would get its number, and all that
    libraries print. A stream that someone else has replaced is left alone.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one
    for number, name in STREAMS:
        usual = getattr(sys, f"__{name}__")
        if getattr(sys, name) is usual:
            if usual is not None:
                with suppress(OSError):
                    usual.flush()
            setattr(sys, name, _protected(number, usual))


def _protected(number: int, like: TextIO | None, **settings: Any) -> io.TextIOWrapper:
    """A stream over a descriptor that never fails, with the encoding and buffering of another."""
    shared: dict[str, Any] = {
        "encoding": like.encoding if like else "utf-8",
        "line_buffering": getattr(like, "line_buffering", False),
        "write_through": getattr(like, "write_through", False),
    }
    buffer = io.BufferedWriter(_Lossy(number, "w", closefd=False))
    return io.TextIOWrapper(buffer, errors="backslashreplace", **(shared | settings))


class RunLog:
    """Receives everything that this process and its children print; a context manager.

    Libraries, compilers and workers write to stdout and stderr as ever: to the log. `stdout` and
    `stderr` are the former ones, the console's, for what a user should see, and stand in
    `sys.__stdout__` and `sys.__stderr__` meanwhile. Text waits in a temporary file until `keep_in`
    names the folder. Streams that are not the process's own (a notebook's, a test's) stay where
    they are: then the log has only what is written to `file`.
    """

    def __init__(self) -> None:
        self._early = tempfile.TemporaryFile()  # noqa: SIM115
        self._number = os.dup(self._early.fileno())
        self._is_kept = False
        self._usual: dict[int, tuple[int, bool, TextIO | None]] = {}
        self.file = _protected(self._number, None, line_buffering=True)
        self.stdout, self.stderr = sys.stdout, sys.stderr

    def __enter__(self) -> RunLog:
        if all(_is_ours(number, name) for number, name in STREAMS):
            for number, name in STREAMS:
                usual = getattr(sys, name)
                usual.flush()
                copy = os.dup(number)
                console = _protected(copy, usual)
                self._usual[number] = copy, usual.line_buffering, getattr(sys, f"__{name}__")
                usual.reconfigure(line_buffering=True)  # a killed process keeps its last words
                setattr(self, name, console)
                setattr(sys, f"__{name}__", console)
            self._redirect()
        return self

    def _redirect(self) -> None:
        for number in self._usual:
            os.dup2(self._number, number)

    def keep_in(self, folder: Path) -> Path:
        """Moves the log to the folder's run.log, behind those of earlier starts.

        All ranks of the first machine share it; other machines have run-<host>.log. Raises OSError
        where it cannot be written; the text then waits further.
        """
        rank, local = (os.environ.get(name, "0") for name in ("RANK", "LOCAL_RANK"))
        name = "run.log" if rank == local else f"run-{socket.gethostname()}.log"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / name).open("ab") as log:
            if rank == "0":
                log.write(f"\n--- {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode())
            self._flush()
            self._early.seek(0)
            shutil.copyfileobj(self._early, log)
            log.flush()
            os.dup2(log.fileno(), self._number, inheritable=False)
        self._redirect()
        self._is_kept = True
        return folder / name

    def _flush(self) -> None:
        """Writes out what Python and C have buffered."""
        for stream in (sys.stdout, sys.stderr, self.file):
            stream.flush()
        with suppress(AttributeError, OSError):
            ctypes.CDLL(None).fflush(None)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if error is not None and self._is_kept:
            speaks = isinstance(error, UserError | RunHalted)
            text = str(error) if speaks else "".join(traceback.format_exception(error))
            print(redact(text), file=self.file)
        self._flush()
        names = dict(STREAMS)
        for number, (copy, line_buffering, usual) in self._usual.items():
            getattr(self, names[number]).flush()
            os.dup2(copy, number)
            os.close(copy)
            getattr(sys, names[number]).reconfigure(line_buffering=line_buffering)
            setattr(sys, f"__{names[number]}__", usual)
        if isinstance(error, Exception) and not isinstance(error, UserError) and not self._is_kept:
            self._early.seek(0)
            sys.stderr.write(self._early.read().decode("utf-8", "replace"))
        os.close(self._number)
        self._early.close()


def _is_ours(number: int, name: str) -> bool:
    """Whether a stream of `sys` writes to this descriptor."""
    stream = getattr(sys, name)
    try:
        return isinstance(stream, io.TextIOWrapper) and stream.fileno() == number
    except (OSError, ValueError):
        return False
