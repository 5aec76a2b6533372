"""A process and its launcher; the standard library alone."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from pathlib import Path

_PR_SET_PDEATHSIG = 1
# Set by torchrun and DeepSpeed's launcher for the ranks that they start.
_LAUNCHED = ("TORCHELASTIC_RUN_ID", "CROSS_RANK")


def world_size() -> int:
    """Ranks of this job, as the launcher announced them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def die_with(parent: int) -> None:
    """Has the kernel end this process when `parent` dies (on Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the request
        os._exit(0)


def die_with_launcher() -> None:
    """Ends this rank when its launcher is killed."""
    if any(name in os.environ for name in _LAUNCHED):
        die_with(os.getppid())


def report_to_launcher(traceback: str) -> None:
    """Writes a traceback where torchrun finds it, to show it as the root cause."""
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        facts = {"py_callstack": traceback, "timestamp": str(int(time.time()))}
        message = {"message": traceback.strip().splitlines()[-1], "extraInfo": facts}
        Path(path).write_text(json.dumps({"message": message}), encoding="utf-8")
