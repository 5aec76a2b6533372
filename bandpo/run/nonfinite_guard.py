"""What follows when an update is refused because its loss or gradient is not finite."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from bandpo.batching import Sample
from bandpo.errors import RunHalted
from bandpo.learner.learner import UpdateResult
from bandpo.ranks.collectives import Ranks

NAMED = 8
"""How many samples a message names; the bundle has them all."""
METRIC_LINES = 100
VALUES = ("advantage", "rollout_logp", "old_logp", "ref_logp", "entropy")


class Refusals:
    """Tells of refused updates, and ends the run after `limit` in a row with a bundle to look into.

    The weights are those of the last update that was taken, and the last checkpoint stays.
    """

    def __init__(self, limit: int, run: Path, ranks: Ranks, say: Callable[[str], None]) -> None:
        self._limit, self._run, self._ranks, self._say = limit, run, ranks, say
        self._in_a_row = 0

    def note(self, result: UpdateResult | None, samples: Sequence[Sample], step: int) -> None:
        """Takes note of an update; raises RunHalted on every rank when it is one too many."""
        if result is None:
            return
        self._in_a_row = self._in_a_row + 1 if result.refused else 0
        if not result.refused:
            return
        what = "gradient" if math.isfinite(result.loss) else "loss"
        self._say(f"step {step}: update skipped, its {what} is not finite; {_blame(result.sick)}")
        if self._in_a_row < self._limit:
            return
        folder = self._run / "diagnostics" / f"step_{step:06d}"
        write_bundle(folder, self._run, result, samples, self._ranks)
        raise RunHalted(
            f"step {step}: {self._in_a_row} update(s) in a row were skipped because loss or "
            f"gradient was not finite; {_blame(result.sick)}. {folder} holds the samples of the "
            "last of them with their tokens and log-probabilities. The last checkpoint is as it "
            "was: mend the cause (a lower learner.lr, a reward that gives NaN, …) and start again"
        )


def _blame(names: Sequence[str]) -> str:
    if not names:
        return "the values of every sample are finite, so that it overflowed on the way"
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"samples with values that are not: {', '.join(names[:NAMED])}{more}"


def write_bundle(
    folder: Path, run: Path, result: UpdateResult, samples: Sequence[Sample], ranks: Ranks
) -> None:
    """Writes what a refused update saw; collective, a file of samples a rank.

    samples-rank<r>.jsonl   tokens, advantage, log-probabilities and entropy of each sample, and
                            whether it is at fault
    update.json             loss, gradient norm, learning rate, the samples at fault
    config.yaml, run.json   of the run: settings and versions
    metrics.jsonl           its last lines
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"samples-rank{ranks.rank}.jsonl").open("w", encoding="utf-8") as file:
        for sample in samples:
            file.write(json.dumps(_record(sample, result)) + "\n")
    if ranks.is_first:
        text = json.dumps(asdict(result), indent=2) + "\n"
        (folder / "update.json").write_text(text, encoding="utf-8")
        for name in ("config.yaml", "run.json"):
            if (run / name).exists():
                shutil.copy(run / name, folder)
        if (run / "metrics.jsonl").exists():
            text = (run / "metrics.jsonl").read_text(encoding="utf-8")
            last = text.splitlines(keepends=True)[-METRIC_LINES:]
            (folder / "metrics.jsonl").write_text("".join(last), encoding="utf-8")
    ranks.barrier()


def _record(sample: Sample, result: UpdateResult) -> dict[str, Any]:
    values = {name: getattr(sample, name) for name in VALUES}
    return {
        "id": sample.id,
        "sick": sample.id in result.sick,
        "prompt_ids": sample.prompt_ids,
        "completion_ids": sample.completion_ids,
        **{k: v.tolist() if isinstance(v, torch.Tensor) else v for k, v in values.items()},
    }
