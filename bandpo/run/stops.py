"""Ends a run between two steps: on a signal, or when its time is up."""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable

import torch

from bandpo.errors import exit_at_once
from bandpo.ranks.collectives import Ranks

SIGNALS = (signal.SIGTERM, signal.SIGINT)
TIME_IS_UP = 1
"""Stands for the time limit among signal numbers; below those in use, so that signals win."""
ECHO_S = 1.0
"""Signals this soon after the first are the same request: launchers forward a signal that the
terminal has already sent to the whole process group."""


class Stops:
    """Requests to stop, received at any moment and met between two steps; a context manager.

    The first SIGTERM or SIGINT lets the step finish, a second one ends the process at once, even
    while the main thread generates or waits for another rank. The time is up `max_hours` after
    `started` (seconds since the epoch; default now).
    """

    def __init__(
        self,
        ranks: Ranks,
        max_hours: float | None,
        say: Callable[[str], None] = print,
        started: float | None = None,
    ) -> None:
        self._ranks, self._say = ranks, say
        limit = float("inf") if max_hours is None else 3600 * max_hours
        self._deadline = (time.time() if started is None else started) + limit
        self._max_hours = max_hours
        self._received: signal.Signals | None = None
        self._received_at = 0.0

    def __enter__(self) -> Stops:
        # Python runs its handlers in the main thread, between two bytecodes, which may be minutes
        # away; the number of the signal is written into this pipe at once.
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK)
        self._usual_fd = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._usual = {number: signal.signal(number, _ignore) for number in SIGNALS}
        self._thread = threading.Thread(target=self._listen, name="stops", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._usual.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._usual_fd)
        os.close(self._writer)  # ends the thread
        self._thread.join()
        os.close(self._reader)

    def _listen(self) -> None:
        while True:
            select.select([self._reader], [], [])
            numbers = os.read(self._reader, 64)
            if not numbers:
                return
            for number in numbers:
                if number in SIGNALS:
                    self._receive(signal.Signals(number))

    def _receive(self, received: signal.Signals) -> None:
        if self._received is None:
            self._received, self._received_at = received, time.monotonic()
            self._say(f"{received.name}: stopping after this step; a second one stops at once")
        elif time.monotonic() - self._received_at > ECHO_S:
            exit_at_once(f"{received.name} again: stopped at once", 128 + received)

    def reason(self) -> str | None:
        """Why the run must stop now, None to continue; collective, the same on every rank."""
        mine = self._received or (TIME_IS_UP if time.time() > self._deadline else 0)
        # A signal may reach one rank alone.
        code = int(self._ranks.max(torch.tensor(float(mine), device=self._ranks.device)))
        if code == TIME_IS_UP:
            return f"trainer.max_hours={self._max_hours:g} is over"
        return signal.Signals(code).name if code else None


def _ignore(*_: object) -> None:
    """The listener acts; without a handler the signal would not be written into the pipe."""
