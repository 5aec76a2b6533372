"""The end of a run's output, and the lines of it that report something wrong."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bandpo.watch.files import shown, tail

SEARCHED = 4 * 2**20
"""Bytes of run.log in which reports are looked for."""
MOST_LINES = 400
MOST_REPORTS = 200
_REPORT = re.compile(
    r"step\s+\d+: (?!one sample)|.*\balarm\b|.*\b(stopped after|nonfinite|refused|interrupted)\b"
    r"|bandpo \w+: |Traceback|[A-Za-z_.]*(Error|Exception|Interrupt)\b|cannot write"
    r"|SIG[A-Z]+: "
)
_SEVERE = re.compile(r".*\b(stopped after|Traceback|Error|Exception|in a row)\b|bandpo \w+: ")
_COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def log_of(folder: Path) -> dict[str, Any]:
    """The last lines of run.log, the reports in it, and the steps of `diagnostics/`."""
    lines = [_plain(line) for line in tail(folder, "run.log", size=SEARCHED).splitlines()]
    reports = [report for line in lines for report in _reports(line)]
    try:
        kept = sorted(entry.name for entry in (folder / "diagnostics").iterdir())
    except OSError:
        kept = []
    return {
        "lines": [shown(line, 2000) for line in lines[-MOST_LINES:]],
        "reports": reports[-MOST_REPORTS:],
        "diagnostics": [shown(name, 80) for name in kept],
    }


def _reports(line: str) -> Iterator[dict[str, Any]]:
    if _REPORT.match(line):
        yield {"text": shown(line, 1000), "severe": bool(_SEVERE.match(line))}


def _plain(line: str) -> str:
    """A line as a terminal shows it in the end: without colours, after the last return."""
    return _COLOURS.sub("", line.rpartition("\r")[2] or line).rstrip()
