"""Ends a run as a lost machine would."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path


def kill_when(
    due: Callable[[], bool], command: list[str], log: Path, environment: Mapping[str, str]
) -> None:
    """Starts a command and sends SIGKILL to all its processes as soon as `due` says so."""
    with log.open("w") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=output, start_new_session=True
        )
        try:
            while not due():
                assert process.poll() is None, log.read_text()[-4000:]
                time.sleep(0.01)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            ended = process.wait()
    assert ended == -signal.SIGKILL, log.read_text()[-4000:]
