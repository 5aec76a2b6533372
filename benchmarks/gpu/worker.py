"""A process that checks run in: one that hangs, is killed or loses its GPU takes no other along."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.gpu.check import Check, Lab, Outcome


class Worker:
    """A process that runs checks; a new one takes its place when it is lost or in the way."""

    def __init__(self, lab: Lab) -> None:
        self._lab = {"tiny": lab.tiny, "models": tuple(lab.models), "folder": lab.folder}
        self._process: Any = None
        self._connection: Connection | None = None

    def run(self, check: Check, limit: float) -> Outcome | None:
        """The check's outcome, failed where its process is lost; None after `limit` seconds."""
        if check.fresh:
            self.close()
        if self._connection is None:
            self._start()
        assert self._connection is not None
        begun = time.perf_counter()
        try:
            self._connection.send(check)
            outcome = self._connection.recv() if self._connection.poll(limit) else None
        except (EOFError, OSError):
            self._process.join(10)
            reason = f"its process was lost (exit code {self._process.exitcode})"
            outcome = Outcome("failed", time.perf_counter() - begun, reason)
            self.close()
        # After an error of CUDA's every later call in the process fails.
        if outcome is None or check.fresh or "CUDA error" in outcome.reason:
            self.close()
        return outcome

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._lab))
        self._process.start()
        theirs.close()

    def close(self) -> None:
        """Ends the process."""
        if self._connection is not None:
            self._connection.close()
            with suppress(ProcessLookupError):  # with the compilers and servers that it started
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.kill()
            self._process.join()
            self._connection = None


def _serve(connection: Connection, settings: dict[str, Any]) -> None:
    os.setpgid(0, 0)
    lab = Lab(**settings)
    while True:
        try:
            check = connection.recv()
        except EOFError:
            return
        connection.send(Outcome.of(check, lab))
