"""stdout and stderr that a run outlives; imports the standard library alone."""

from __future__ import annotations

import io
import os
import select
import sys
from contextlib import suppress
from typing import Any


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
    for number, name in ((1, "stdout"), (2, "stderr")):
        usual = getattr(sys, f"__{name}__")
        if getattr(sys, name) is usual:
            setattr(sys, name, _protected(number, usual))


def _protected(number: int, usual: io.TextIOWrapper | None) -> io.TextIOWrapper:
    if usual is not None:
        with suppress(OSError):
            usual.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Lossy(number, "w", closefd=False)),
        encoding=usual.encoding if usual else "utf-8",
        errors="backslashreplace",
        line_buffering=usual.line_buffering if usual else False,
        write_through=usual.write_through if usual else False,
    )
