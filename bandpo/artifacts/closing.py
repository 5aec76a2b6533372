"""The last lines of a finished run: the gain on every benchmark, and the commands to type next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bandpo.artifacts.tracking import headlines


def gains(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """`amc23  mean@32 0.25 → 0.5  pass@32 0.7 → 0.8`, first to last evaluation, per benchmark."""
    evaluated = [found for found in map(headlines, lines) if found]
    if len(evaluated) < 2:
        return []
    before, after = evaluated[0], evaluated[-1]
    return [
        "  ".join(
            [
                benchmark,
                *(
                    f"{metric} {before[benchmark][metric]:.4g} → {value:.4g}"
                    for metric, value in scores.items()
                    if metric in before.get(benchmark, {})
                ),
            ]
        )
        for benchmark, scores in after.items()
    ]


def next_commands(
    folder: Path, lines: Sequence[Mapping[str, Any]], steps: int, command: str = ""
) -> list[tuple[str, str]]:
    """Three commands that follow a finished run of so many steps: (purpose, command).

    `command` is the one that started the run, empty where it alone would not resume it.
    """
    place = shlex.quote(str(folder))
    evaluated = [line["step"] for line in lines if headlines(line)]
    compare = "where the time went", f"bandpo plot timeline {place}"
    if len(evaluated) > 1:
        first, last = (f"{place}/eval/{step:06d}" for step in (evaluated[0], evaluated[-1]))
        compare = "the gain, with its interval", f"bandpo compare {first} {last}"
    return [
        compare,
        ("the policy on other benchmarks, with a report", f"bandpo eval model={place}"),
        (f"{steps} more steps", _longer(command, 2 * steps))
        if command
        else ("the curves", f"bandpo plot training {place}"),
    ]


def _longer(command: str, steps: int) -> str:
    given = shlex.split(command)
    kept = [word for word in given if not word.startswith(("trainer.steps=", "trainer.resume="))]
    return shlex.join([*kept, f"trainer.steps={steps}"])
