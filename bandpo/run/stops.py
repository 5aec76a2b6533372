"""Ends a run between two steps: on a signal, or when its time is up."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable

import torch

from bandpo.ranks.collectives import Ranks

SIGNALS = (signal.SIGTERM, signal.SIGINT)
TIME_IS_UP = 1
"""In place of a signal's number, and below those in use: a signal is named first."""
ECHO_S = 1.0
"""Signals this soon after the first are the same request: launchers pass on what the terminal has
already sent to the whole process group."""


class Stops:
    """Requests to stop, heard at any moment and granted between two steps; a context manager.

    The first SIGTERM or SIGINT lets the step finish, a second one ends the process at once, even
    while the main thread is deep in a generation or waits for another rank. `max_hours` after
    `started` (seconds since the epoch; now, if not given) its time is up.
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
        self._asked: signal.Signals | None = None
        self._asked_at = 0.0

    def __enter__(self) -> Stops:
        # Python runs its handlers in the main thread, between two bytecodes, which may be minutes
        # away; the number of the signal is written into this pipe at once.
        self._bell, ring = os.pipe2(os.O_NONBLOCK)
        self._ring = ring
        self._usual_fd = signal.set_wakeup_fd(ring, warn_on_full_buffer=False)
        self._usual = {number: signal.signal(number, _ignore) for number in SIGNALS}
        self._thread = threading.Thread(target=self._listen, name="stops", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._usual.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._usual_fd)
        os.close(self._ring)  # ends the thread
        self._thread.join()
        os.close(self._bell)

    def _listen(self) -> None:
        while True:
            select.select([self._bell], [], [])
            heard = os.read(self._bell, 64)
            if not heard:
                return
            for number in heard:
                if number in SIGNALS:
                    self._hear(signal.Signals(number))

    def _hear(self, received: signal.Signals) -> None:
        if self._asked is None:
            self._asked, self._asked_at = received, time.monotonic()
            self._say(f"{received.name}: stopping after this step; once more stops at once")
        elif time.monotonic() - self._asked_at > ECHO_S:
            print(f"{received.name} again: stopped at once", file=sys.stderr, flush=True)
            os._exit(128 + received)

    def reason(self) -> str | None:
        """Why the run is to stop now; None to go on. Collective: the same on every rank."""
        mine = self._asked or (TIME_IS_UP if time.time() > self._deadline else 0)
        # One rank may know what the others do not.
        code = int(self._ranks.max(torch.tensor(float(mine), device=self._ranks.device)))
        if code == TIME_IS_UP:
            return f"trainer.max_hours={self._max_hours:g} are over"
        return signal.Signals(code).name if code else None


def _ignore(*_: object) -> None:
    """The listener acts; a handler must be there for the signal to be written into the pipe."""
