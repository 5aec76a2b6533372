"""Two programs that take turns: each works when it is told to and says how long it took.

A contender is a process of its own. It reads lines from its standard input, does one step of work
for each, and answers with a line `RESULT {…}`. This file needs nothing but the standard library,
so that a contender can run in another environment.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MARK = "RESULT "


def wait_for_turn() -> None:
    """In a contender: blocks until the next step is asked for; ends the process at the end."""
    if not sys.stdin.readline():
        sys.stdout.flush()
        os._exit(0)


def report(figures: Mapping[str, Any]) -> None:
    """In a contender: what the step came to, with the largest memory so far in MiB."""
    peak = sum(map(peak_mib, family(os.getpid())))
    # A run's stdout may be its log.
    print(MARK + json.dumps({**figures, "peak_mib": peak}), file=sys.__stdout__, flush=True)


def family(process: int) -> list[int]:
    """A process and those that descend from it."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended in the meantime
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    children = [child for child, parent in parents.items() if parent == process]
    return [process, *(member for child in children for member in family(child))]


def peak_mib(process: int) -> float:
    """The largest resident memory of a process so far."""
    with contextlib.suppress(OSError):
        found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{process}/status").read_text())
        return int(found[1]) / 1024 if found else 0.0
    return 0.0


class Contender:
    """A process that takes a step when asked to."""

    def __init__(
        self, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self._log = log
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            text=True,
            env={**os.environ, **(environment or {})},
        )

    def step(self) -> dict[str, Any]:
        """One step; raises RuntimeError with the end of its log when the contender died."""
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith(MARK):
                return json.loads(line.removeprefix(MARK))
        raise RuntimeError(f"{self._process.args[:3]} ended:\n{self._log.read_text()[-3000:]}")

    def close(self) -> None:
        """Ends it."""
        self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
