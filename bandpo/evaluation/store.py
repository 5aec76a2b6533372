"""Where an evaluation's samples and summaries go: written as they finish, whole after any kill."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bandpo.disk.whole import write_atomically
from bandpo.errors import UserError
from bandpo.evaluation.samples import Sample, differences
from bandpo.evaluation.summary import Summary, write_summaries

Groups = dict[str, list[Sample]]
"""The samples of each problem, by its id."""
OnLoss = Callable[[str], object]
"""Receives a message about samples or a summary that the disk did not take."""


@dataclass(frozen=True)
class Store:
    """The folder of an evaluation: `<benchmark>.jsonl` for each benchmark, and summary.json.

    With `resume`, samples that are already there are kept; without, they are discarded. A disk
    that refuses a write raises OSError, unless `on_loss` is given: then what it refuses is lost,
    and `on_loss` receives a message.
    """

    folder: Path
    resume: bool = True
    on_loss: OnLoss | None = None

    def log(self, benchmark: str) -> SampleLog:
        """The log of a benchmark's samples."""
        return SampleLog(self.folder / f"{benchmark}.jsonl", self.on_loss)

    def begin(self, log: SampleLog, settings: Mapping[str, Any], n: int) -> Groups:
        """The complete groups of n samples that are kept, by problem id."""
        if self.resume:
            return log.resume(settings, n)
        log.restart(settings)
        return {}

    def write(self, summaries: Sequence[Summary]) -> None:
        """Writes summary.json."""
        try:
            write_summaries(self.folder, summaries)
        except OSError as error:
            if self.on_loss is None:
                raise
            self.on_loss(f"the summary in {self.folder} is not kept: {error}")


class SampleLog:
    """Append-only samples of one benchmark, group by group.

    A group is one write followed by fsync, so a kill leaves whole groups and at most one torn
    group at the end, which `resume` cuts off. Where `on_loss` is given and the disk refuses a
    write, the log is deleted, since a part of the samples would look like all of them.
    """

    def __init__(self, path: Path, on_loss: OnLoss | None = None) -> None:
        self.path, self._on_loss, self._lost = path, on_loss, False
        self._settings = path.with_suffix(".settings.json")

    def resume(self, settings: Mapping[str, Any], n: int) -> Groups:
        """Every complete group so far by problem id; raises `UserError` if settings changed.

        Groups that a kill left in other ranks' files are moved into this one.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self._settings.exists():
            self._refuse_changes(settings)
        else:
            self._write_settings(settings)
        done = {group[0].problem_id: group for group in _complete_groups(self.path, n)}
        for path in self._other_ranks():
            for group in _complete_groups(path, n):
                if group[0].problem_id not in done:
                    self.append(group)
                    done[group[0].problem_id] = group
        self.drop_other_ranks()
        return done

    def restart(self, settings: Mapping[str, Any]) -> None:
        """Discards the samples of an earlier evaluation."""
        with self._expendable():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            for path in (self.path, *self._other_ranks()):
                path.unlink(missing_ok=True)
            self._write_settings(settings)

    def append(self, group: Sequence[Sample]) -> None:
        """Writes a group in one piece and waits until it is on the disk."""
        if self._lost:
            return
        lines = "".join(json.dumps(dataclasses.asdict(sample)) + "\n" for sample in group)
        data = lines.encode("ascii")
        with self._expendable(), self.path.open("ab", buffering=0) as file:
            if file.write(data) != len(data):
                raise OSError(f"{self.path}: could not write a whole group; is the disk full?")
            os.fsync(file.fileno())

    def of_rank(self, rank: int) -> SampleLog:
        """The log of a rank; ranks other than 0 have their own until rank 0 moves their samples."""
        path = self.path.with_suffix(f".rank{rank}.jsonl")
        return self if rank == 0 else SampleLog(path, self._on_loss)

    def drop_other_ranks(self) -> None:
        """Removes the other ranks' files once their samples are in this one."""
        for path in self._other_ranks():
            path.unlink()

    @contextmanager
    def _expendable(self) -> Iterator[None]:
        """A disk that refuses a write raises, or costs the log."""
        try:
            yield
        except OSError as error:
            if self._on_loss is None:
                raise
            self._lost = True
            self.path.unlink(missing_ok=True)
            self._on_loss(f"{self.path} is not kept: {error}")

    def _other_ranks(self) -> list[Path]:
        return sorted(self.path.parent.glob(f"{self.path.stem}.rank*.jsonl"))

    def _write_settings(self, settings: Mapping[str, Any]) -> None:
        write_atomically(self._settings, json.dumps(settings, indent=2) + "\n")

    def _refuse_changes(self, settings: Mapping[str, Any]) -> None:
        before = json.loads(self._settings.read_text(encoding="utf-8"))
        changed = differences(before, settings)
        if changed:
            raise UserError.join(
                f"{self.path.parent} holds samples of another evaluation: name another folder "
                "(out=…), or sample anew in this one (eval.resume=false). What differs:",
                changed,
            )


def _complete_groups(path: Path, n: int) -> list[list[Sample]]:
    """The groups of n samples from the start of the file; the rest is cut off."""
    if not path.exists():
        return []
    groups: list[list[Sample]] = []
    group: list[Sample] = []
    good_bytes = position = 0
    with path.open("rb") as file:
        for line in file:
            position += len(line)
            try:
                sample = Sample(**json.loads(line))
            except (ValueError, TypeError):
                break
            group.append(sample)
            if not line.endswith(b"\n") or sample.problem_id != group[0].problem_id:
                break
            if len(group) == n:
                groups.append(group)
                group, good_bytes = [], position
    if good_bytes < path.stat().st_size:
        os.truncate(path, good_bytes)
    return groups
