"""metrics.jsonl as series of numbers, read on as it grows."""

from __future__ import annotations

import json
import math
import os
import threading
from array import array
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from bandpo.watch.files import lines_of, opened

METRICS = "metrics.jsonl"
_SEAL = 4096
"""Bytes before the place of reading that must be as they were."""
_LARGEST = 3.4e38
"""Of single precision."""


@dataclass
class Series:
    """The lines that have a metric, and its values there, which may be nonfinite."""

    rows: array[int] = field(default_factory=lambda: array("I"))
    values: array[float] = field(default_factory=lambda: array("f"))

    def cut(self, row: int) -> None:
        """Removes this line's value and those after it."""
        place = bisect_left(self.rows, row)
        del self.rows[place:], self.values[place:]


class SeriesFile:
    """All metrics of one run, in single precision.

    Reads the lines that came since the last time. A file that was replaced or cut, as a resumed run
    does, is read from its beginning. Lines that are no JSON object with a step are skipped.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._forget()

    def _forget(self) -> None:
        self.steps: array[int] = array("q")
        self.series: dict[str, Series] = {}
        self._offset, self._inode, self._seal = 0, 0, b""

    @property
    def size(self) -> int:
        """Bytes that the numbers take."""
        return 8 * len(self.steps) + sum(8 * len(s.rows) for s in self.series.values())

    def read(self, use: Callable[[SeriesFile], Any]) -> Any:
        """The value of `use` for the metrics of now; no other thread reads on meanwhile."""
        with self._lock:
            try:
                with opened(self._folder, METRICS) as file:
                    self._read_on(file)
            except OSError:  # removed, set aside, or not there yet
                self._forget()
            return use(self)

    def _read_on(self, file: BinaryIO) -> None:
        inode = os.fstat(file.fileno()).st_ino
        file.seek(max(0, self._offset - _SEAL))
        if inode != self._inode or file.read(len(self._seal)) != self._seal:
            self._forget()
        self._inode = inode
        file.seek(self._offset)
        for _, line in lines_of(file):
            self._add(line)
            self._offset = file.tell()
        file.seek(max(0, self._offset - _SEAL))
        self._seal = file.read(min(_SEAL, self._offset))

    def _add(self, line: bytes) -> None:
        record = record_in(line)
        step = record.get("step")
        if not isinstance(step, int) or not 0 <= step < 2**53:
            return
        if self.steps and step <= self.steps[-1]:  # the later line of a step counts
            self._cut(bisect_left(self.steps, step))
        row = len(self.steps)
        self.steps.append(step)
        for name, value in record.items():
            if isinstance(value, int | float) and name != "step":
                series = self.series.get(name) or self.series.setdefault(name, Series())
                series.rows.append(row)
                series.values.append(value if abs(value) < _LARGEST else math.nan)

    def _cut(self, row: int) -> None:
        del self.steps[row:]
        for series in self.series.values():
            series.cut(row)
        self.series = {name: series for name, series in self.series.items() if series.rows}

    def points(self, name: str, axis: str = "step") -> tuple[np.ndarray, np.ndarray]:
        """(x, values) of a metric, empty where there is none; see `AXES`."""
        series = self.series.get(name, Series())
        rows = np.array(series.rows, dtype=np.int64)
        return self.axis(axis)[rows], np.array(series.values, dtype=np.float64)

    def axis(self, axis: str) -> np.ndarray:
        """The position of every line: its step, or the sum so far of what `AXES` names."""
        if axis not in AXES:
            return np.array(self.steps, dtype=np.float64)
        name, unit = AXES[axis]
        summed = np.zeros(len(self.steps))
        series = self.series.get(name, Series())
        summed[np.array(series.rows, dtype=np.int64)] = np.nan_to_num(series.values, posinf=0)
        return np.cumsum(summed) / unit


AXES: Mapping[str, tuple[str, float]] = {
    "hours": ("time/step_s", 3600.0),
    "tokens": ("length/tokens", 1.0),
}
"""Axes but the step: hours of steps (without evaluations and checkpoints), and tokens sampled."""


def record_in(line: bytes | str) -> dict[str, Any]:
    """The JSON object of a line; empty where it is none."""
    try:
        text = line if isinstance(line, str) else line.decode("utf-8", "replace")
        record = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def folded(x: np.ndarray, values: np.ndarray, most: int) -> dict[str, list[float | None]]:
    """A curve as at most so many points: x, mean, and where points are folded, low and high.

    Nonfinite values are None where nothing finite is in the same fold.
    """
    if len(x) <= most:
        return {"x": _plain(x), "mean": _plain(values)}
    edges = np.linspace(0, len(x), most, endpoint=False).astype(int)
    finite = np.isfinite(values)
    counts = np.add.reduceat(finite.astype(float), edges)
    with np.errstate(divide="ignore", invalid="ignore"):
        means = np.add.reduceat(np.where(finite, values, 0.0), edges) / counts
    low = np.minimum.reduceat(np.where(finite, values, math.inf), edges)
    high = np.maximum.reduceat(np.where(finite, values, -math.inf), edges)
    middle = np.add.reduceat(x, edges) / np.diff(np.append(edges, len(x)))
    return {"x": _plain(middle), "mean": _plain(means), "low": _plain(low), "high": _plain(high)}


def _plain(values: np.ndarray) -> list[float | None]:
    """Numbers of six digits, without NaN and infinities."""
    return [float(f"{v:.6g}") if math.isfinite(v) else None for v in values.tolist()]
