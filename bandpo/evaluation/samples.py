"""The samples of an evaluation on disk: written as they finish, readable after any kill."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from bandpo.disk.whole import write_atomically
from bandpo.errors import UserError
from bandpo.reward.score import Score, Status
from bandpo.types import Group

# Where the same data lies may differ between the parts of one evaluation; the date that prompts
# show is in the hash of the prompts.
IRRELEVANT = frozenset({"origin", "prompt_date"})


@dataclass(frozen=True)
class Sample:
    """One judged completion, a line of `<benchmark>.jsonl`; `seed` is that of its prompt.

    `status` and `detail` are the verifier's, see `bandpo.reward.Score`.
    """

    problem_id: str
    sample: int
    status: Status
    extracted: str | None
    answer: str
    tokens: int
    truncated: bool
    seed: int
    prompt: str
    completion: str
    detail: str = ""

    @property
    def verdict(self) -> str:
        """The status, or `unparsed` for an answer that is wrong because it could not be read."""
        unread = self.status == "wrong" and self.detail == "unparsed"
        return "unparsed" if unread else self.status

    @property
    def correct(self) -> bool:
        """Whether the verifier found the answer equal to the reference answer."""
        return self.status == "correct"


def judged(group: Group, scores: Sequence[Score]) -> list[Sample]:
    """The samples of a scored group, in the group's order."""
    return [
        Sample(
            problem_id=group.problem.id,
            sample=index,
            status=score.status,
            extracted=score.extracted,
            answer=group.problem.answer,
            tokens=len(completion.token_ids),
            truncated=completion.truncated,
            seed=group.prompt.seed,
            prompt=group.prompt.text,
            completion=completion.text,
            detail=score.detail,
        )
        for index, (completion, score) in enumerate(zip(group.completions, scores, strict=True))
    ]


class SampleLog:
    """Append-only samples of one benchmark, a group at a time.

    A group is one write followed by fsync, so a kill leaves whole groups and at most one torn
    one at the end, which `resume` cuts off.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._settings = path.with_suffix(".settings.json")

    def resume(self, settings: Mapping[str, Any], n: int) -> dict[str, list[Sample]]:
        """Every complete group so far by problem id; raises `UserError` if settings changed.

        What other ranks' files hold, left by a kill before it was taken over, is taken over.
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
        """Forgets whatever an earlier evaluation left here."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for path in (self.path, *self._other_ranks()):
            path.unlink(missing_ok=True)
        self._write_settings(settings)

    def append(self, group: Sequence[Sample]) -> None:
        """Writes a group in one piece and waits until it is on the disk."""
        lines = "".join(json.dumps(dataclasses.asdict(sample)) + "\n" for sample in group)
        data = lines.encode("ascii")
        with self.path.open("ab", buffering=0) as file:
            if file.write(data) != len(data):
                raise OSError(f"{self.path}: could not write a whole group; is the disk full?")
            os.fsync(file.fileno())

    def of_rank(self, rank: int) -> SampleLog:
        """Where a rank other than 0 writes until rank 0 takes its samples over."""
        return self if rank == 0 else SampleLog(self.path.with_suffix(f".rank{rank}.jsonl"))

    def drop_other_ranks(self) -> None:
        """Removes the other ranks' files once their samples are in this one."""
        for path in self._other_ranks():
            path.unlink()

    def _other_ranks(self) -> list[Path]:
        return sorted(self.path.parent.glob(f"{self.path.stem}.rank*.jsonl"))

    def _write_settings(self, settings: Mapping[str, Any]) -> None:
        write_atomically(self._settings, json.dumps(settings, indent=2) + "\n")

    def _refuse_changes(self, settings: Mapping[str, Any]) -> None:
        before = json.loads(self._settings.read_text(encoding="utf-8"))
        changed = differences(before, settings)
        if changed:
            raise UserError.join(
                f"{self.path.parent} holds samples of another evaluation; choose another folder, "
                "or delete this one. What differs:",
                changed,
            )


class ExpendableLog(SampleLog):
    """A log that is given up, with a message, when the disk refuses it."""

    def __init__(self, path: Path, give_up: Callable[[str], None]) -> None:
        super().__init__(path)
        self._give_up, self._given_up = give_up, False

    def restart(self, settings: Mapping[str, Any]) -> None:
        """As the base class does, or gives up."""
        self._try(super().restart, settings)

    def append(self, group: Sequence[Sample]) -> None:
        """As the base class does, or gives up: a part of the samples would look like all."""
        self._try(super().append, group)

    def of_rank(self, rank: int) -> SampleLog:
        """As the base class does."""
        return self if rank == 0 else ExpendableLog(super().of_rank(rank).path, self._give_up)

    def _try(self, write: Callable[[Any], None], what: Any) -> None:
        if self._given_up:
            return
        try:
            write(what)
        except OSError as error:
            self._given_up = True
            self.path.unlink(missing_ok=True)
            self._give_up(f"{self.path} is not kept: {error}")


def prompt_date(folder: Path) -> str | None:
    """The date that the prompts of the evaluation in this folder show, None where they do not."""
    for path in sorted(folder.glob("*.settings.json")):
        try:
            date = json.loads(path.read_text(encoding="utf-8")).get("prompt_date")
            return None if date is None else datetime.fromisoformat(date).date().isoformat()
        except (ValueError, AttributeError, TypeError) as error:
            raise UserError(f"{path}: not the settings of an evaluation: {error}") from error
    return None


def differences(
    before: Mapping[str, Any], now: Mapping[str, Any], ignore: frozenset[str] = IRRELEVANT
) -> list[str]:
    """`key: value → value` for all settings in which two evaluations differ."""
    keys = sorted((before.keys() | now.keys()) - ignore)
    return [
        f"{key}: {before.get(key)} → {now.get(key)}"
        for key in keys
        if before.get(key) != now.get(key)
    ]


def read_samples(path: Path) -> list[Sample]:
    """All samples of a finished `<benchmark>.jsonl`; raises `UserError` if it cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return [Sample(**json.loads(line)) for line in lines]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: no readable samples: {error}") from error


def _complete_groups(path: Path, n: int) -> list[list[Sample]]:
    """The groups of n samples from the start of the file; what follows them is cut off."""
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
