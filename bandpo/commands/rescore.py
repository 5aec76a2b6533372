"""`bandpo rescore`: saved samples judged again by both rewards, and where these differ.

bandpo rescore outputs/my-run/samples/*.jsonl outputs/eval/my-model/*.jsonl --examples 20
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from bandpo.errors import UserError
from bandpo.reward.disagreement import disagreement_report
from bandpo.reward.math import MathReward, MathVerifier
from bandpo.reward.release import ReleaseReward
from bandpo.types import Completion, Group, Problem, Prompt

_KEYS = ("problem_id", "answer", "prompt", "completion", "truncated")


def main(argv: Sequence[str]) -> int:
    """Prints the disagreement report of the given files."""
    parser = argparse.ArgumentParser(prog="bandpo rescore", description=__doc__.splitlines()[0])
    parser.add_argument("samples", nargs="+", type=Path, help="JSONL of a run or an evaluation")
    parser.add_argument("--examples", type=int, default=10, help="disagreements to show")
    parser.add_argument("--timeout", type=float, default=3.0, help="seconds an answer may take")
    parser.add_argument("--workers", type=int, default=2, help="verifier processes")
    parser.add_argument("--json", type=Path, help="file for the counts")
    arguments = parser.parse_args(list(argv))
    verifier = MathVerifier(timeout=arguments.timeout, workers=arguments.workers)
    with MathReward(verifier) as reward:
        groups = saved_groups(arguments.samples)
        report = disagreement_report(groups, reward, ReleaseReward(), ("math", "release"))
    print(report.render(arguments.examples))
    if arguments.json is not None:
        text = json.dumps(report.summary(), indent=2) + "\n"
        arguments.json.write_text(text, encoding="utf-8")
    return 0


def saved_groups(paths: Iterable[Path]) -> Iterator[Group]:
    """The groups in files of samples, as training and evaluation write them.

    The prompt stands for the problem, which is not saved. Raises UserError for a file that cannot
    be read or a line that is no sample.
    """
    for path in paths:
        for _, samples in groupby(_samples(path), key=lambda sample: sample["problem_id"]):
            yield _group(list(samples))


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
            raise UserError(f"{path}:{number}: a saved sample has {', '.join(missing)} as well")
        yield sample


def _group(samples: Sequence[Mapping[str, Any]]) -> Group:
    first = samples[0]
    problem = Problem(first["problem_id"], first["prompt"], first["answer"])
    completions = tuple(
        Completion(sample["completion"], (), (), "length" if sample["truncated"] else "stop")
        for sample in samples
    )
    return Group(Prompt(problem, first["prompt"], ()), completions)
