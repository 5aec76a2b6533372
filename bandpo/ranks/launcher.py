"""What a process owes to the one that started it; the standard library alone."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from pathlib import Path

_PR_SET_PDEATHSIG = 1
# What torchrun and DeepSpeed's launcher set for the ranks that they start.
_LAUNCHED = ("TORCHELASTIC_RUN_ID", "CROSS_RANK")


def die_with(parent: int) -> None:
    """Ends this process when `parent` dies, by the kernel where it can (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked
        os._exit(0)


def die_with_launcher() -> None:
    """Ties a rank to its launcher: a launcher that is killed leaves no rank behind."""
    if any(name in os.environ for name in _LAUNCHED):
        die_with(os.getppid())


def tell_launcher(traceback: str) -> None:
    """Puts a traceback where torchrun finds it and shows it as the root cause."""
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        facts = {"py_callstack": traceback, "timestamp": str(int(time.time()))}
        message = {"message": traceback.strip().splitlines()[-1], "extraInfo": facts}
        Path(path).write_text(json.dumps({"message": message}), encoding="utf-8")
