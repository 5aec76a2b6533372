"""Ranks watch each other: none outlives a crash of another, or the loss of a machine, for long."""

from __future__ import annotations

import os
import socket
import threading
import time
from types import TracebackType

import psutil

from bandpo.errors import RunHalted, exit_at_once
from bandpo.ranks import heartbeat
from bandpo.ranks.collectives import Ranks
from bandpo.ranks.joining import require_reachable_host

POLL_S = 0.5
NOTICE_S = 1.0
"""How long a failing rank looks for another that failed before it and was the cause."""
LAUNCHER_S = 3.0
"""How long a rank outlives a dead one, so that the launcher reports the first failure alone."""


class Neighbours:
    """Ends this process when another rank of this machine, or another machine, has died.

    A context manager. The first rank of a machine watches the other machines. A rank may wait for
    a dead one in a collective that never returns (NCCL), or fail in it with an error that hides
    the cause (gloo). Leaving the context without an error is collective, so that a rank that has
    finished is not taken for dead.
    """

    def __init__(self, ranks: Ranks) -> None:
        """Finds the processes of all ranks; collective."""
        self._ranks = ranks
        here = _machine()
        processes = ranks.gather((here, os.getpid()))
        machines = list(dict.fromkeys(machine for machine, _ in processes))
        first = next(rank for rank, (machine, _) in enumerate(processes) if machine == here)
        self._hosts = [host for host, _ in machines]
        if len(set(self._hosts)) > 1:
            require_reachable_host()
        self._heartbeat: heartbeat.Heartbeat | None = None
        if len(machines) > 1 and ranks.rank == first:
            self._heartbeat = heartbeat.Heartbeat(machines.index(here), len(machines))
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
        if self._others or self._heartbeat:
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
        if self._heartbeat:
            self._heartbeat.end()

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
            if self._heartbeat and (silent := self._heartbeat.silent()):
                lost = ", ".join(self._hosts[machine] for machine in silent)
                self._exit(f"machine {lost} has been silent for {heartbeat.LOST_S:.0f} s")

    def _end(self, error: BaseException | None = None) -> None:
        """Ends the process at once: a normal exit could wait for the dead rank."""
        dead = ", ".join(map(str, self.dead))
        detail = f" ({str(error).splitlines()[0][:200]})" if error and str(error) else ""
        self._exit(f"rank {dead} died first{detail}")

    def _exit(self, cause: str) -> None:
        exit_at_once(f"rank {self._ranks.rank} ends because {cause}", 1)


def _has_ended(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _machine() -> tuple[str, int]:
    """The host, and the namespace within which process ids mean the same."""
    try:
        return socket.gethostname(), os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return socket.gethostname(), 0
