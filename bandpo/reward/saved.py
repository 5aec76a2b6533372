"""Saved samples as groups that can be scored again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from bandpo.errors import UserError
from bandpo.types import Completion, Group, Problem, Prompt, logprob_array, token_array

_KEYS = ("problem_id", "answer", "prompt", "completion", "truncated")


def saved_groups(paths: Iterable[Path]) -> Iterator[Group]:
    """The groups in files of samples, as training and evaluation write them.

    The prompt stands for the problem, which is not saved. Raises UserError for a file that cannot
    be read or a line that is no sample.
    """
    for path in paths:
        for _, samples in groupby(_samples(path), key=lambda sample: sample["problem_id"]):
            yield _group(list(samples))


def verifier_of(samples: Path) -> str | None:
    """The version of the verifier that scored a file of samples; None where it is not written.

    An evaluation keeps it in its settings, a run in run.json, two folders up at the most.
    """
    for path in (
        samples.with_suffix(".settings.json"),
        *(folder / "run.json" for folder in list(samples.resolve().parents)[1:3]),
    ):
        try:
            verifier = json.loads(path.read_text(encoding="utf-8")).get("verifier")
        except (OSError, ValueError, AttributeError):
            continue
        return verifier.get("version") if isinstance(verifier, Mapping) else verifier
    return None


def _samples(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        # Not splitlines: U+2028 is text.
        lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    for number, line in enumerate(lines, 1):
        try:
            sample = json.loads(line)
            missing = [key for key in _KEYS if key not in sample]
        except (ValueError, TypeError):
            raise UserError(f"{path}:{number}: this line is no JSON object") from None
        if missing:
            raise UserError(f"{path}:{number}: not a saved sample: no {', '.join(missing)}")
        yield sample


def _group(samples: Sequence[Mapping[str, Any]]) -> Group:
    first = samples[0]
    problem = Problem(first["problem_id"], first["prompt"], first["answer"])
    completions = tuple(
        Completion(
            sample["completion"],
            token_array(()),
            logprob_array(()),
            "length" if sample["truncated"] else "stop",
        )
        for sample in samples
    )
    return Group(Prompt(problem, first["prompt"], ()), completions)
