"""The samples of an evaluation, and the settings that they were made with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from bandpo.errors import UserError
from bandpo.reward.score import Score, Status
from bandpo.types import Group

# Where data and chat template lie may differ between the parts of one evaluation; what a template
# makes of the problems, and the date that prompts show, are in the hash of the prompts.
IRRELEVANT = frozenset({"origin", "prompt_date", "chat_template"})


@dataclass(frozen=True)
class Sample:
    """One scored completion, a line of `<benchmark>.jsonl`; `seed` is that of its prompt.

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


def samples_of(group: Group, scores: Sequence[Score]) -> list[Sample]:
    """The samples of a scored group, in the group's order."""
    return [
        Sample(
            problem_id=group.problem.id,
            sample=index,
            status=score.status,
            extracted=score.extracted,
            answer=group.problem.answer,
            tokens=completion.length,
            truncated=completion.truncated,
            seed=group.prompt.seed,
            prompt=group.prompt.text,
            completion=completion.text,
            detail=score.detail,
        )
        for index, (completion, score) in enumerate(zip(group.completions, scores, strict=True))
    ]


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
