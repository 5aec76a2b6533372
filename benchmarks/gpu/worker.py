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
from benchmarks.gpu.checks import CHECKS

# A check that takes so many times what it takes on an H100, and so many seconds, is ended.
PATIENCE, GRACE = 3.0, 60.0


class Worker:
    """A process that runs checks; a new one takes its place when it is lost or in the way."""

    def __init__(self, lab: Lab) -> None:
        self._lab = {"tiny": lab.tiny, "models": tuple(lab.models), "folder": lab.folder}
        self._process: Any = None
        self._connection: Connection | None = None

    def run(self, check: Check, limit: float) -> Outcome:
        """The check's outcome; failed where it takes longer than `limit` seconds or is killed."""
        if check.fresh:
            self.close()
        if self._connection is None:
            self._start()
        assert self._connection is not None
        begun = time.perf_counter()
        try:
            self._connection.send(check.name)
            if self._connection.poll(limit):
                outcome: Outcome = self._connection.recv()
                if "CUDA error" in outcome.reason or check.fresh:
                    self.close()
                return outcome
            reason = f"ended after {limit:.0f} s"
        except (EOFError, OSError):
            self._process.join(10)
            reason = f"its process was lost (exit code {self._process.exitcode})"
        self.close()
        return Outcome("failed", time.perf_counter() - begun, reason)

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
    checks = {check.name: check for check in CHECKS}
    while True:
        try:
            name = connection.recv()
        except EOFError:
            return
        connection.send(Outcome.of(checks[name], lab))
