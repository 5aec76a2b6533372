"""The ranks of one machine keep an eye on each other: none outlives a crash of another for long."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from types import TracebackType

import psutil

from bandpo.errors import RunHalted
from bandpo.ranks.collectives import Ranks

POLL_S = 0.5
NOTICE_S = 1.0
"""How long a rank that fails looks for another one that failed before it and was the cause."""
LAUNCHER_S = 3.0
"""How long a rank outlives a dead one, so that the launcher reports the first failure alone."""


class Neighbours:
    """Ends this process when another rank of this machine has died; a context manager.

    A rank may wait for a dead one in a collective that never returns (NCCL), or fail over it with
    an error that hides the cause (gloo). Leaving the context without an error is collective, so
    that a rank that has finished is not taken for a dead one.
    """

    def __init__(self, ranks: Ranks) -> None:
        """Learns the processes of all ranks; collective."""
        self._ranks = ranks
        here = (socket.gethostname(), _namespace())
        processes = ranks.gather((here, os.getpid()))
        self._others = {
            rank: psutil.Process(pid)
            for rank, (machine, pid) in enumerate(processes)
            if machine == here and rank != ranks.rank
        }
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="neighbours", daemon=True)

    @property
    def dead(self) -> list[int]:
        """The ranks of this machine whose processes have ended."""
        return [rank for rank, process in self._others.items() if _has_ended(process)]

    def __enter__(self) -> Neighbours:
        if self._others:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, RunHalted):  # which all ranks raise together
            self._ranks.barrier()
        elif self._others and self._died_within(NOTICE_S):
            time.sleep(LAUNCHER_S)
            self._end(error)
        self._left.set()

    def _died_within(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while not self.dead:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True

    def _watch(self) -> None:
        while not self._left.wait(POLL_S):
            if self.dead:
                if not self._left.wait(LAUNCHER_S):
                    self._end()
                return

    def _end(self, error: BaseException | None = None) -> None:
        """Ends the process without waiting for anything: what it waits for may be the dead rank."""
        dead = ", ".join(map(str, self.dead))
        told = f" ({str(error).splitlines()[0][:200]})" if error and str(error) else ""
        print(
            f"rank {self._ranks.rank} ends because rank {dead} died first{told}",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)


def _has_ended(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _namespace() -> int:
    """Process ids mean the same within one of these only."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0
