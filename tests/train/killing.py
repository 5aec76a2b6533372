"""Ends a run as a lost machine would."""

import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import psutil


def kill_when(
    due: Callable[[], bool], command: list[str], log: Path, environment: Mapping[str, str]
) -> None:
    """Starts a command and sends SIGKILL to all its processes as soon as `due` says so."""
    with log.open("w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        try:
            while not due():
                assert process.poll() is None, log.read_text()[-4000:]
                time.sleep(0.01)
        finally:
            # Launchers start their ranks in sessions, so groups of processes, of their own.
            whole = psutil.Process(process.pid)
            family = [whole, *whole.children(recursive=True)]
            for member in family:
                with suppress(psutil.NoSuchProcess):
                    member.kill()
            _, alive = psutil.wait_procs(family[1:], timeout=30)
            ended = process.wait()
    assert not alive
    assert ended == -signal.SIGKILL, log.read_text()[-4000:]
