"""Calls of a user's function in threads, none of which can keep the process from ending."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Any, TypeVar

A = TypeVar("A")


class Late(Exception):
    """A call has not returned within its time."""


class Threads:
    """A few daemon threads that make calls in turn.

    Those of `concurrent.futures` are joined before the interpreter exits, so that one call that
    never returns would keep a run that has failed, or was stopped, from ending.
    """

    def __init__(self, size: int, name: str) -> None:
        self._size, self._name = size, name
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._started: list[threading.Thread] = []
        self._lock = threading.Lock()

    def submit(self, function: Callable[[], A], timeout: float | None = None) -> Future[A]:
        """Makes the call when a thread is free; its future raises Late `timeout` seconds after."""
        call = _Call(function, timeout)
        self._calls.put(call)
        with self._lock:
            if len(self._started) < self._size:
                thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                self._started.append(thread)
                thread.start()
        return call.future

    def close(self) -> None:
        """Ends the threads after their present calls; futures of calls not begun are cancelled."""
        with suppress(queue.Empty):
            while (call := self._calls.get_nowait()) is not None:
                call.future.cancel()
                call.future.set_running_or_notify_cancel()
        for _ in self._started:
            self._calls.put(None)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call.make()


class _Call:
    def __init__(self, function: Callable[[], Any], timeout: float | None) -> None:
        self._function, self._timeout = function, timeout
        self.future: Future[Any] = Future()

    def make(self) -> None:
        """Resolves the future: with the result, the error, or Late, whichever comes first."""
        if not self.future.set_running_or_notify_cancel():
            return
        timer = None
        if self._timeout is not None:
            timer = threading.Timer(self._timeout, self._fail, [Late()])
            timer.daemon = True
            timer.start()
        try:
            result = self._function()
        except BaseException as error:  # SystemExit included: the future's reader must get it
            self._fail(error)
        else:
            with suppress(InvalidStateError):
                self.future.set_result(result)
        if timer is not None:
            timer.cancel()

    def _fail(self, error: BaseException) -> None:
        with suppress(InvalidStateError):
            self.future.set_exception(error)
