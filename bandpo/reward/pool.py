"""Worker processes that judge answers and can be killed at any moment.

Each worker is one thread of this process that feeds one child process over a pair of pipes
(`bandpo.reward.worker`). Workers share nothing, no lock and no queue between processes: whatever
an answer does to its worker, a kill at the worst moment included, touches that answer alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
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
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

# Deaths that somebody else wished for: the item is not to blame and is tried again.
_KILLED_FROM_OUTSIDE = {-signal.SIGKILL, -signal.SIGTERM, -signal.SIGHUP, -signal.SIGINT}
_MAX_OUTSIDE_KILLS = 20
_START_LIMIT_S, _START_ATTEMPTS = 120.0, 3
_REPLY_BUFFER = 1 << 16
# Below this share of the limit spent on the CPU, a late item was starved, not slow.
_STARVED = 0.5
_KEPT_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR")


@dataclass(frozen=True)
class Limits:
    """What one item may use: wall-clock seconds and MiB of address space."""

    timeout: float = 3.0
    memory_mib: int = 1024
    recycle_after: int = 5000


@dataclass(frozen=True)
class Request:
    """An answer to judge against a reference answer; `free` searches the text for one."""

    answer: str
    gold: str
    free: bool = False


@dataclass(frozen=True)
class Reply:
    """The verdict: equality.Verdict, or timeout, or crashed."""

    verdict: str
    seconds: float = 0.0
    detail: str = ""


class WorkerPool:
    """`size` workers, started with the first request, usable from any thread.

    Raises RuntimeError from `submit` and in pending futures when workers cannot start (for
    instance because math-verify is not installed), never a silent zero.
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
            raise RuntimeError("the verifier's pool was made in another process; make one here")
        self._start()
        task = _Task(_FIRST, next(self._order), request)
        self._tasks.put(task)
        return task.future

    def pids(self) -> list[int]:
        """Process ids of the live workers that read model output."""
        return [pid for worker in self._workers if (pid := worker.child)]

    def close(self) -> None:
        """Kills the workers; futures not done yet raise CancelledError."""
        with self._lock:
            self._closed = True
            workers, self._workers = self._workers, []
        for worker in workers:
            self._tasks.put(_Task(_STOP, next(self._order), Request("", "")))
            worker.end()
        for worker in workers:
            worker.thread.join(timeout=5)
        while not self._tasks.empty():
            self._tasks.get_nowait().future.cancel()

    def _start(self) -> None:
        with self._lock:
            if self._closed:
                raise RuntimeError("the verifier's pool is closed")
            while len(self._workers) < self.size:
                self._workers.append(_Worker(self._tasks, self.limits))


_STOP, _FIRST, _RETRY = range(3)  # a retry waits until nothing else does


@dataclass(order=True)
class _Task:
    priority: int
    order: int
    request: Request = field(compare=False)
    future: Future[Reply] = field(compare=False, default_factory=Future)
    outside_kills: int = field(compare=False, default=0)


class _Died(Exception):
    def __init__(self, code: int, cpu: float) -> None:
        super().__init__(code)
        self.code, self.cpu = code, cpu


class _Late(Exception):
    pass


class _Worker:
    """One thread and the process it feeds."""

    def __init__(self, tasks: queue.PriorityQueue[_Task], limits: Limits) -> None:
        self.tasks, self.limits = tasks, limits
        self.child = 0
        self._template: subprocess.Popen[bytes] | None = None
        self._buffer = b""
        self._ids = itertools.count()
        self._cpu = 0.0
        self._ended = False
        # The thread that starts a process must outlive it: the kernel ties a parent-death signal
        # to the parent's thread.
        self.thread = threading.Thread(target=self._run, name="bandpo-verifier", daemon=True)
        self.thread.start()

    def end(self) -> None:
        """Kills the process; the thread ends at its next step."""
        self._ended = True
        if self._template is not None:
            self._template.kill()  # its child dies with it

    def _run(self) -> None:
        while not self._ended:
            try:
                self._ensure_ready()
            except Exception as error:
                self._fail_all(error)
                return
            task = self.tasks.get()
            if task.priority == _STOP:
                return
            if task.priority == _FIRST and not task.future.set_running_or_notify_cancel():
                continue
            try:
                reply = self._attempt(task)
            except Exception as error:
                task.future.set_exception(error)
                self._fail_all(error)
                return
            if reply is not None:
                task.future.set_result(reply)

    def _attempt(self, task: _Task) -> Reply | None:
        """The reply, or None when the task was put back."""
        while True:
            try:
                return self._ask(task.request)
            except _Late:
                cpu = self._kill_child()
                if task.priority == _FIRST and cpu < _STARVED * self.limits.timeout:
                    retry = dataclasses.replace(task, priority=_RETRY)
                    self.tasks.put(retry)
                    return None
                return Reply("timeout", self.limits.timeout)
            except _Died as death:
                if self._ended:
                    raise CancelledError from death
                if death.code == -signal.SIGXCPU:
                    return Reply("timeout", self.limits.timeout)
                task.outside_kills += 1
                outside = death.code in _KILLED_FROM_OUTSIDE
                if not outside or task.outside_kills > _MAX_OUTSIDE_KILLS:
                    return Reply("crashed", detail=f"exit {death.code}")

    def _ask(self, request: Request) -> Reply:
        self._ensure_ready()
        number = next(self._ids)
        self._send({"id": number, **dataclasses.asdict(request)})
        deadline = time.monotonic() + self.limits.timeout
        while True:
            message = self._receive(deadline)
            if message.get("id") == number:
                self._cpu = message["cpu"]
                return Reply(message["verdict"], message["seconds"], message["detail"])

    def _ensure_ready(self) -> None:
        """Starts the template where there is none, and waits for its child."""
        for attempt in range(1, _START_ATTEMPTS + 1):
            if self._template is None:
                self._launch()
            try:
                while not self.child:
                    self._receive(time.monotonic() + _START_LIMIT_S)
                return
            except (_Late, _Died) as error:
                if self.child or self._template is not None:  # a child died before it served
                    continue
                if attempt == _START_ATTEMPTS:
                    raise RuntimeError(f"the verifier's worker cannot start: {error}") from error

    def _launch(self) -> None:
        environment = {k: v for k in _KEPT_ENVIRONMENT if (v := os.environ.get(k)) is not None}
        root = str(Path(__file__).resolve().parents[2])
        environment |= {
            "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]),
            "PYTHONHASHSEED": "0",  # sympy's orderings, hence verdicts, must not vary
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
        }
        limits = json.dumps(dataclasses.asdict(self.limits))
        self._buffer, self.child, self._cpu = b"", 0, 0.0
        self._template = subprocess.Popen(
            [sys.executable, "-P", "-m", "bandpo.reward.worker", str(os.getpid()), limits],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env=environment,
            cwd="/",
        )
        if self._ended:
            self._template.kill()

    def _send(self, message: dict[str, Any]) -> None:
        assert self._template is not None and self._template.stdin is not None
        data = json.dumps(message).encode() + b"\n"
        try:
            self._template.stdin.write(data)
        except (BrokenPipeError, ValueError):
            self._template_died()

    def _receive(self, deadline: float) -> dict[str, Any]:
        """The next message; raises _Late at the deadline and _Died when the child or all died."""
        assert self._template is not None and self._template.stdout is not None
        fd = self._template.stdout.fileno()
        while b"\n" not in self._buffer:
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise _Late
            chunk = os.read(fd, _REPLY_BUFFER)
            if not chunk:
                self._template_died()
            self._buffer += chunk
        line, self._buffer = self._buffer.split(b"\n", 1)
        message = json.loads(line)
        if "ready" in message:
            self.child = message["ready"]
        if "died" in message:
            self.child = 0
            cpu, self._cpu = message["cpu"] - self._cpu, 0.0
            raise _Died(message["died"], cpu)
        return message

    def _template_died(self) -> None:
        assert self._template is not None and self._template.stderr is not None
        self._template.kill()
        code = self._template.wait()
        words = self._template.stderr.read().decode(errors="replace").strip()
        for pipe in (self._template.stdin, self._template.stdout, self._template.stderr):
            pipe.close()  # type: ignore[union-attr]
        self._template, self.child = None, 0
        if words:
            raise _Died(code, 0.0) from RuntimeError(words)
        raise _Died(code, 0.0)

    def _kill_child(self) -> float:
        """Kills the process that is late; the CPU seconds that its item had used."""
        with contextlib.suppress(ProcessLookupError):  # it has just died by itself
            os.kill(self.child, signal.SIGKILL)
        try:
            while True:
                self._receive(time.monotonic() + _START_LIMIT_S)
        except _Died as death:
            return death.cpu

    def _fail_all(self, error: Exception) -> None:
        logger.error("%s", error)
        while True:
            task = self.tasks.get()
            if task.priority == _STOP:
                return
            task.future.set_exception(error)
