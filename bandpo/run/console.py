"""The process's own output, which a run must outlive; the standard library alone."""

from __future__ import annotations

import io
import os
import select
import sys
from contextlib import suppress
from typing import Any


class _Expendable(io.FileIO):
    """A descriptor to which a write never fails: what it refuses is lost.

    Its reader may have gone (`| head`), its disk may be full, its terminal closed.
    """

    def write(self, data: Any) -> int:
        try:
            while (written := super().write(data)) is None:  # full, and it does not block
                select.select([], [self], [])
            return written
        except OSError:
            return memoryview(data).nbytes


def secure_streams() -> None:
    """Makes stdout and stderr streams that raise nothing, whatever is behind them.

    Characters that their encoding lacks are written as escapes. A descriptor that was closed
    (`>&-`) leads to nowhere: else the next file that is opened would get its number, and what
    libraries print. A stream that somebody has put in place is left alone.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
    for number, name in ((1, "stdout"), (2, "stderr")):
        usual = getattr(sys, f"__{name}__")
        if getattr(sys, name) is usual:
            setattr(sys, name, _secured(number, usual))


def _secured(number: int, usual: io.TextIOWrapper | None) -> io.TextIOWrapper:
    if usual is not None:
        with suppress(OSError):
            usual.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Expendable(number, "w", closefd=False)),
        encoding=usual.encoding if usual else "utf-8",
        errors="backslashreplace",
        line_buffering=usual.line_buffering if usual else False,
        write_through=usual.write_through if usual else False,
    )
