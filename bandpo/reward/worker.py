"""The verifier's worker process: `main` with the arguments <parent pid> <limits as JSON>.

A template process imports math-verify once, checks its verdicts on known cases, and never sees
model output. It forks the process that does; when that one ends, killed by the pool or by its own
input, the template reports its exit code and forks the next within milliseconds. Requests arrive
on stdin and replies leave on the former stdout, one JSON object per line; nothing is unpickled.

This module imports the standard library alone, and math-verify in the template: no torch, vLLM
or DeepSpeed, no CUDA context, and not the trainer's main module either.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import json
import math
import os
import resource
import signal
import sys
import time
from typing import Any, NoReturn

from bandpo.ranks.launcher import die_with

EXIT_END_OF_INPUT, EXIT_MEMORY, EXIT_RECYCLED = 0, 70, 71

_CLONE_NEWNET, _CLONE_NEWUSER = 0x40000000, 0x10000000
# Verification never needs these; they are refused inside the worker, before the system call.
_FORBIDDEN_EVENTS = ("socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork")


def main() -> None:
    """Runs the template until its parent closes the pipe or dies."""
    parent, limits = int(sys.argv[1]), json.loads(sys.argv[2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the trainer handles Ctrl-C
    _leave_network()  # before die_with: a new user namespace clears the death signal
    die_with(parent)
    replies = os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)  # a stray print must not enter the stream of replies

    from bandpo.reward import equality

    equality.self_test()
    gc.collect()
    gc.freeze()  # keeps the collector from unsharing the template's pages in its children
    os.dup2(null, 2)
    template = os.getpid()
    for generation in itertools.count():
        pid = os.fork()
        if pid == 0:
            die_with(template)
            _confine(limits)
            _serve(replies, generation, limits)
        _, status, usage = os.wait4(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        if code == EXIT_END_OF_INPUT:
            return
        _write(replies, {"died": code, "cpu": usage.ru_utime + usage.ru_stime})


def _serve(replies: int, generation: int, limits: dict[str, Any]) -> NoReturn:
    """Answers requests until the input ends or the process has served its share."""
    from bandpo.reward.equality import judge

    _write(replies, {"generation": generation, "pid": os.getpid()})
    served, buffer = 0, b""
    while served < limits["recycle_after"]:
        chunk = os.read(0, 65536)
        if not chunk:
            os._exit(EXIT_END_OF_INPUT)
        *lines, buffer = (buffer + chunk).split(b"\n")
        for request in map(_decode, lines):
            if request.pop("to", None) != generation:
                continue
            number = request.pop("id")
            _limit_cpu(limits["timeout"])
            started = time.perf_counter()
            verdict, detail = "crashed", ""
            try:
                verdict = str(judge(**request))
            except MemoryError:
                os._exit(EXIT_MEMORY)  # the state of this process is unknown now
            except Exception as error:
                detail = type(error).__name__
            reply = {"id": number, "verdict": verdict, "detail": detail}
            seconds = time.perf_counter() - started
            _write(replies, reply | {"seconds": seconds, "cpu": time.process_time()})
            served += 1
    os._exit(EXIT_RECYCLED)


def _decode(line: bytes) -> dict[str, Any]:
    """A request; empty for the rest of a line that a killed predecessor had begun to read."""
    try:
        request = json.loads(line)
    except ValueError:
        return {}
    return request if isinstance(request, dict) else {}


def _write(fd: int, message: dict[str, Any]) -> None:
    """Writes a short line, which a pipe takes whole or not at all."""
    try:
        os.write(fd, json.dumps(message).encode() + b"\n")
    except BrokenPipeError:
        os._exit(EXIT_END_OF_INPUT)


def _leave_network() -> None:
    """Moves into an empty network namespace where the system permits it (`_confine` forbids
    sockets in any case)."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if libc.unshare(_CLONE_NEWNET) != 0:
            libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET)


def _confine(limits: dict[str, Any]) -> None:
    """Limits memory and files, and refuses sockets and processes for good."""
    memory = int(limits["memory_mib"]) << 20
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(_FORBIDDEN_EVENTS):
            raise PermissionError(f"the verifier's worker may not use {event}")

    sys.addaudithook(audit)


def _limit_cpu(timeout: float) -> None:
    """The kernel ends an item that outlives its limit even when nobody is left to kill it."""
    soft = math.ceil(time.process_time() + timeout + 1)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))
