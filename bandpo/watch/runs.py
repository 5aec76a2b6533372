"""The runs of a folder: found, described in a few numbers, and their metrics kept in memory."""

from __future__ import annotations

import math
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from bandpo.artifacts.folder import PREVIOUS
from bandpo.disk import lock
from bandpo.watch.files import shown, stamp, tail
from bandpo.watch.series import METRICS, SeriesFile, record_in
from bandpo.watch.settings import settings_of

DEEPEST = 6
"""Folders between the one that is watched and a run."""
MOST_RUNS = 2000
MOST_BYTES = 512 * 2**20
"""Of metrics in memory; what was not asked for the longest is forgotten first."""
RESCAN_S = 5.0
_TAIL = 64 * 2**10  # bytes of metrics.jsonl: at least ten lines
_SIGNS = ("config.yaml", METRICS)
_FILES = (*_SIGNS, "run.log", "problems.jsonl", "samples", "eval", "diagnostics")


def run_folders(root: Path) -> dict[str, Path]:
    """The runs below a folder, or the folder itself, by their path from it; links are skipped."""
    if _is_run(root):
        return {root.name: root}
    found = islice(_below(root, DEEPEST), MOST_RUNS)
    return {path.relative_to(root).as_posix(): path for path in found}


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _SIGNS)


def _below(folder: Path, depth: int) -> Iterator[Path]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:  # gone meanwhile, or not ours to read
        return
    for entry in entries:
        if entry.name.startswith(".") or entry.name == PREVIOUS:
            continue
        if entry.is_dir(follow_symlinks=False):
            path = Path(entry.path)
            if _is_run(path):
                yield path
            elif depth > 1:
                yield from _below(path, depth - 1)


def signature(folder: Path) -> tuple[Any, ...]:
    """The same as long as no file that the page shows has changed."""
    return tuple(stamp(folder / name) for name in _FILES)


@dataclass(frozen=True)
class _Facts:
    """A run in numbers that change with its files alone."""

    settings: Mapping[str, Any]
    last: Mapping[str, float]
    written: float

    @property
    def steps(self) -> int:
        """The steps that the run is to take, 0 where that is not known."""
        steps = self.settings.get("trainer.steps")
        return steps if isinstance(steps, int) else 0

    @property
    def step(self) -> int | None:
        """The last step that is finished."""
        step = self.last.get("step")
        return int(step) if step is not None else None


def _facts(folder: Path) -> _Facts:
    last: dict[str, float] = {}
    for line in tail(folder, METRICS, size=_TAIL).splitlines(keepends=True):
        if line.endswith("\n"):
            numbers = record_in(line).items()
            last |= {name: v for name, v in numbers if isinstance(v, int | float)}
    times = [stamp(folder / name)[2] for name in (METRICS, "run.log", "config.yaml")]
    return _Facts(settings_of(folder), last, max(times) / 1e9)


def state_of(facts: _Facts, locked: bool, now: float) -> str:
    """`finished`, `running`, `stalled`, `stopped` or `waiting` (nothing is trained yet).

    A run that is locked trains on this machine, and is stalled if it has written nothing for long.
    A run of another machine counts as running for as long as it keeps writing.
    """
    seconds = facts.last.get("time/step_s", 0.0)
    seconds = seconds if math.isfinite(seconds) else 0.0
    silent = now - facts.written
    if locked:
        return "stalled" if silent > max(1800.0, 10 * seconds) else "running"
    if facts.steps and (facts.step or 0) >= facts.steps:
        return "finished"
    if silent < max(120.0, 3 * seconds):
        return "running"
    return "stopped" if facts.step is not None else "waiting"


def locked_files() -> set[tuple[int, int]]:
    """(device, inode) of files with a flock on this machine; taking one would disturb its run."""
    try:
        lines = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except OSError:
        return set()
    words = [line.split() for line in lines]
    places = [w[5].split(":") for w in words if len(w) > 5 and w[1] == "FLOCK" and w[3] == "WRITE"]
    return {(os.makedev(int(p[0], 16), int(p[1], 16)), int(p[2])) for p in places if len(p) == 3}


def _is_locked(folder: Path, locked: set[tuple[int, int]]) -> bool:
    try:
        found = (folder / lock.NAME).lstat()
    except OSError:
        return False
    return (found.st_dev, found.st_ino) in locked


class Library:
    """All runs of a folder; safe to use from several threads."""

    def __init__(self, root: Path, clock: Callable[[], float] = time.time) -> None:
        self.name, self.root = str(root), root.resolve()
        self._clock = clock
        self._lock = threading.Lock()
        self._folders: dict[str, Path] = {}
        self._scanned = -math.inf
        self._facts: dict[str, tuple[Any, _Facts]] = {}
        self._metrics: OrderedDict[str, SeriesFile] = OrderedDict()

    def folders(self) -> dict[str, Path]:
        """The runs by id, found anew every few seconds."""
        with self._lock:
            if time.monotonic() - self._scanned > RESCAN_S:
                self._folders = run_folders(self.root)
                self._scanned = time.monotonic()
                for known in (self._facts, self._metrics):
                    for id in known.keys() - self._folders.keys():
                        del known[id]
            return dict(self._folders)

    def metrics(self, id: str, use: Callable[[SeriesFile], Any]) -> Any:
        """The value of `use` for a run's metrics as they are now."""
        with self._lock:
            if id not in self._folders:
                raise FileNotFoundError(f"the run {id} is gone")
            kept = self._metrics.setdefault(id, SeriesFile(self._folders[id]))
            self._metrics.move_to_end(id)
        made = kept.read(use)
        with self._lock:
            while len(self._metrics) > 1 and self._size() > MOST_BYTES:
                self._metrics.popitem(last=False)
        return made

    def _size(self) -> int:
        return sum(kept.size for kept in self._metrics.values())

    def overview(self) -> list[dict[str, Any]]:
        """Every run with its state and its last numbers, the one written last first."""
        locked, now = locked_files(), self._clock()
        runs = [
            _described(id, self._facts_of(id, folder), _is_locked(folder, locked), now)
            for id, folder in self.folders().items()
        ]
        return sorted(runs, key=lambda run: (-run["written"], run["id"]))

    def _facts_of(self, id: str, folder: Path) -> _Facts:
        now = signature(folder)
        before, facts = self._facts.get(id, (None, None))
        if facts is None or before != now:
            facts = _facts(folder)
            self._facts[id] = (now, facts)
        return facts


def _described(id: str, facts: _Facts, locked: bool, now: float) -> dict[str, Any]:
    settings, last = facts.settings, facts.last
    accuracy = next((name for name in sorted(last) if "/mean@" in name), None)
    named = ("method.name", "seed", "model.path")
    words = {key.split(".")[0]: shown(settings.get(key), 80) for key in named}
    return {
        "id": id,
        "name": shown(settings.get("run.name") or id.rpartition("/")[2], 120),
        **words,
        "step": facts.step,
        "steps": facts.steps,
        "reward": number_or_word(last.get("reward/mean")),
        "entropy": number_or_word(last.get("policy/entropy")),
        "accuracy": number_or_word(last.get(accuracy or "")),
        "benchmark": shown((accuracy or "").removeprefix("eval/"), 80),
        "state": state_of(facts, locked, now),
        "written": facts.written,
    }


def number_or_word(value: float | None) -> float | str | None:
    """A number for JSON; the word for one that is nonfinite."""
    if value is None or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "infinite"
