"""Worker processes that judge answers and can be killed at any moment.

Each worker is one thread of this process that feeds one child process over a pair of pipes
(`bandpo.reward.worker`). Workers share nothing between them, no lock and no queue: whatever an
answer does to its worker, or a SIGKILL at the worst moment, touches that answer alone. Nothing
depends on signals or on the main thread.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import queue
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bandpo.reward.score import LowestForm, WorkerDied
from bandpo.reward.worker import EXIT_RECYCLED

logger = logging.getLogger(__name__)

# Ends that are not the item's doing: it is tried again, after pauses that grow, for as long as a
# machine may be short of memory for a while.
_INNOCENT = {-signal.SIGKILL, -signal.SIGTERM, -signal.SIGHUP, -signal.SIGINT, EXIT_RECYCLED}
_PATIENCE_S, _SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 120.0, 0.02, 1.0
_START_LIMIT_S = 120.0
_MAX_REPLY = 4096
# Below this share of its time spent on the CPU, a late item was starved by others, not slow.
_STARVED = 0.5
_START = "from bandpo.reward.worker import main; main()"
_KEPT_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR")


@dataclass(frozen=True)
class Limits:
    """Limits of one item, and the number of items after which a worker is replaced."""

    timeout: float = 3.0  # wall-clock seconds
    memory_mib: int = 512  # address space
    recycle_after: int = 5000


@dataclass(frozen=True)
class Request:
    """The arguments of `equality.judge`."""

    answer: str
    gold: str
    free: bool = False
    lowest_form: LowestForm = "restated"


_HARMLESS = Request("1", "1")


@dataclass(frozen=True)
class Reply:
    """The verdict: one of equality.Verdict, or timeout, or crashed."""

    verdict: str
    seconds: float = 0.0
    detail: str = ""


class WorkerPool:
    """Up to `size` workers, started as requests need them, usable from any thread.

    An item that outlives its time limit is a `timeout`, unless it was starved of CPU: then it is
    tried once more when nothing else waits. One that has been killed from outside for two minutes
    is `crashed` if another item survives in its place. Where none does, or where workers cannot
    start, for instance without math-verify, futures raise RuntimeError: never a silent zero.
    """

    def __init__(self, size: int, limits: Limits) -> None:
        self.size, self.limits = size, limits
        self._tasks: queue.PriorityQueue[_Task] = queue.PriorityQueue()
        self._order = itertools.count()
        self._lock = threading.Lock()
        self._workers: list[_Worker] = []
        self._closed = False
        self._pid = os.getpid()

    def submit(self, request: Request) -> Future[Reply]:
        """Queues a request."""
        if self._pid != os.getpid():
            raise RuntimeError("this verifier was made in another process; make one in this one")
        task = _Task(_FIRST, next(self._order), request)
        self._tasks.put(task)
        self._grow()
        return task.future

    def close(self) -> None:
        """Kills the workers; futures not done yet raise CancelledError."""
        with self._lock:
            self._closed = True
            workers, self._workers = self._workers, []
        for worker in workers:
            self._tasks.put(_Task(_STOP, next(self._order), Request("", "")))
            worker.end()
        for worker in workers:
            worker.thread.join(timeout=10)
        while not self._tasks.empty():
            _fail(self._tasks.get_nowait().future, CancelledError())

    def _grow(self) -> None:
        """One more worker where there is none or more waits than one could take."""
        with self._lock:
            if self._closed:
                raise RuntimeError("the verifier is closed")
            started = len(self._workers)
            if started < self.size and (not started or self._tasks.qsize() > 1):
                self._workers.append(_Worker(self._tasks, self.limits))


_STOP, _FIRST, _RETRY = range(3)  # a retry waits until nothing else does


@dataclass(order=True)
class _Task:
    priority: int
    order: int
    request: Request = field(compare=False)
    future: Future[Reply] = field(compare=False, default_factory=Future)


class _Died(Exception):
    """The process that judges, or the whole worker, has ended."""

    def __init__(self, code: int, cpu: float = 0.0, words: str = "") -> None:
        super().__init__(f"exit code {code}\n{words}".strip())
        self.code, self.cpu = code, cpu


class _Late(Exception):
    """No message came before the deadline."""


def _pauses() -> Iterator[float]:
    """Seconds to wait before the first try and each further one, until patience ends.

    The time counts from the end of the first try.
    """
    yield 0.0
    deadline = time.monotonic() + _PATIENCE_S
    pause = _SHORTEST_PAUSE_S
    while time.monotonic() < deadline:
        yield pause
        pause = min(2 * pause, _LONGEST_PAUSE_S)


class _Worker:
    """One thread and the processes it feeds: a template, and the child that judges."""

    def __init__(self, tasks: queue.PriorityQueue[_Task], limits: Limits) -> None:
        self._tasks, self._limits = tasks, limits
        self._template: subprocess.Popen[bytes] | None = None
        self._child: dict[str, int] | None = None  # pid and generation, once it is ready
        self._cpu = 0.0  # seconds that the child had used at its last reply
        self._buffer = b""
        self._numbers = itertools.count()
        self._ended = threading.Event()
        # The thread that starts a process must outlive it: the kernel ties the parent-death
        # signal to the parent's thread.
        self.thread = threading.Thread(target=self._run, name="bandpo-verifier", daemon=True)
        self.thread.start()

    def end(self) -> None:
        """Kills the processes; the thread ends at its next step."""
        self._ended.set()
        if (template := self._template) is not None:
            template.kill()  # its child dies with it

    def _run(self) -> None:
        task: _Task | None = None
        try:
            while True:
                self._ensure_ready()
                task = self._tasks.get()
                if task.priority == _STOP:
                    return
                if task.priority == _RETRY or task.future.set_running_or_notify_cancel():
                    self._finish(task)
                task = None
        except Exception as error:
            self._fail_from(task, error)
        finally:
            if self._template is not None:
                self._bury_template()

    def _finish(self, task: _Task) -> None:
        for pause in _pauses():
            self._ended.wait(pause)
            try:
                return task.future.set_result(self._ask(task.request))
            except _Late:
                cpu = self._kill_child()
                if task.priority == _FIRST and cpu < _STARVED * self._limits.timeout:
                    return self._tasks.put(_Task(_RETRY, task.order, task.request, task.future))
                return task.future.set_result(Reply("timeout", self._limits.timeout))
            except _Died as death:
                if self._ended.is_set() or death.code in _INNOCENT:
                    continue
                late = death.code == -signal.SIGXCPU
                verdict = "timeout" if late else "crashed"
                return task.future.set_result(Reply(verdict, death.cpu, f"exit {death.code}"))
        self._require_survival()
        detail = f"killed at each try for {_PATIENCE_S:.0f} s"
        logger.warning("an answer was not verified: its worker was %s", detail)
        task.future.set_result(Reply("crashed", detail=detail))

    def _require_survival(self) -> None:
        """Raises WorkerDied unless an item that harms no worker is judged here and now."""
        try:
            self._ask(_HARMLESS)
        except (_Died, _Late):
            raise WorkerDied(
                f"the verifier's workers have been killed for {_PATIENCE_S:.0f} s, whatever they "
                "verify: is the machine out of memory?"
            ) from None

    def _ask(self, request: Request) -> Reply:
        self._ensure_ready()
        assert self._child is not None
        number = next(self._numbers)
        # A child ignores what was addressed to a dead one.
        self._send({"id": number, "to": self._child["generation"], **asdict(request)})
        deadline = time.monotonic() + self._limits.timeout
        while (message := self._receive(deadline)).get("id") != number:
            pass
        self._cpu = message["cpu"]
        return Reply(message["verdict"], message["seconds"], message["detail"])

    def _ensure_ready(self) -> None:
        """Starts the template where there is none, and waits for a child that lives."""
        last: _Died | None = None
        for pause in _pauses():
            # The template forks by itself, and a fresh child is best used at once: one that idles
            # is killed as well. Starting a template is expensive.
            if self._ended.wait(pause if self._template is None else 0.0):
                raise CancelledError
            try:
                if self._template is None:
                    self._launch()
                while self._child is None or self._pending():
                    self._receive(time.monotonic() + _START_LIMIT_S)
                return
            except _Died as death:
                last = death
                if death.code not in _INNOCENT:
                    break
            except _Late:
                raise WorkerDied(
                    f"the verifier's worker was not ready after {_START_LIMIT_S:.0f} s"
                ) from None
        raise WorkerDied(f"the verifier's worker does not start: {last}")

    def _launch(self) -> None:
        environment = {k: v for k in _KEPT_ENVIRONMENT if (v := os.environ.get(k)) is not None}
        package = str(Path(__file__).resolve().parents[2])
        environment |= {
            "PYTHONPATH": os.pathsep.join([package, os.environ.get("PYTHONPATH", "")]),
            "PYTHONHASHSEED": "0",  # sympy's orderings, hence verdicts, must not vary
            "PYTHONDONTWRITEBYTECODE": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
        }
        arguments = [str(os.getpid()), json.dumps(asdict(self._limits))]
        self._buffer, self._child, self._cpu = b"", None, 0.0
        self._template = subprocess.Popen(
            [sys.executable, "-P", "-c", _START, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env=environment,
            cwd="/",
        )
        if self._ended.is_set():  # end() may have come before there was anything to kill
            self._template.kill()

    def _send(self, message: dict[str, Any]) -> None:
        assert self._template is not None and self._template.stdin is not None
        try:
            self._template.stdin.write(json.dumps(message).encode() + b"\n")
        except BrokenPipeError:
            raise self._bury_template() from None

    def _pending(self, seconds: float = 0.0) -> bool:
        assert self._template is not None and self._template.stdout is not None
        if b"\n" in self._buffer:
            return True
        poll = select.poll()
        poll.register(self._template.stdout, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def _receive(self, deadline: float) -> dict[str, Any]:
        """The next message; raises _Late at the deadline, _Died when the child or all ended."""
        assert self._template is not None and self._template.stdout is not None
        while b"\n" not in self._buffer:
            if not self._pending(max(0.0, deadline - time.monotonic())):
                raise _Late
            chunk = os.read(self._template.stdout.fileno(), _MAX_REPLY)
            self._buffer += chunk
            if not chunk or len(self._buffer) > 4 * _MAX_REPLY:
                raise self._bury_template()
        line, self._buffer = self._buffer.split(b"\n", 1)
        message: dict[str, Any] = json.loads(line)
        if "generation" in message:
            self._child = message
        elif "died" in message:
            used, self._child, self._cpu = message["cpu"] - self._cpu, None, 0.0
            raise _Died(message["died"], used)
        return message

    def _kill_child(self) -> float:
        """Kills the process that is late; the CPU seconds that its item had used."""
        assert self._child is not None
        with contextlib.suppress(ProcessLookupError):  # it has just died by itself
            os.kill(self._child["pid"], signal.SIGKILL)
        try:
            while True:
                self._receive(time.monotonic() + _START_LIMIT_S)
        except _Died as death:
            return death.cpu

    def _bury_template(self) -> _Died:
        """Ends the template, and with it the child; what is left to say about it."""
        assert self._template is not None and self._template.stderr is not None
        self._template.kill()
        code = self._template.wait()
        words = self._template.stderr.read().decode(errors="replace")
        for pipe in (self._template.stdin, self._template.stdout, self._template.stderr):
            pipe.close()  # type: ignore[union-attr]
        self._template = self._child = None
        return _Died(code, words=words)

    def _fail_from(self, task: _Task | None, error: Exception) -> None:
        """Hands the error to this task and all that wait: without workers nothing moves on."""
        if not isinstance(error, CancelledError):
            logger.error("%s", error)
        while task is None or task.priority != _STOP:
            if task is not None:
                _fail(task.future, type(error)(*error.args))
            task = self._tasks.get()


def _fail(future: Future[Reply], error: BaseException) -> None:
    if future.running() or future.set_running_or_notify_cancel():
        future.set_exception(error)
