"""Ends a run whose updates are skipped again and again, since loss or gradient is nonfinite."""

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
from bandpo.errors import RunHalted, listed
from bandpo.learner.updates.result import UpdateResult
from bandpo.ranks.collectives import Ranks

NAMED = 8
"""Samples that a message names; the bundle has them all."""
METRIC_LINES = 100
VALUES = ("advantage", "rollout_logp", "old_logp", "ref_logp", "entropy")


class NonfiniteGuard:
    """Reports updates that were skipped as nonfinite, and ends the run after `limit` in a row.

    It leaves a bundle to look into (`write_bundle`); the last checkpoint stays as it is.
    """

    def __init__(self, limit: int, run: Path, ranks: Ranks, say: Callable[[str], None]) -> None:
        self._limit, self._run, self._ranks, self._say = limit, run, ranks, say
        self._in_a_row = 0

    def check(self, result: UpdateResult, samples: Sequence[Sample], step: int) -> None:
        """Counts an update on these samples; raises RunHalted on every rank at the limit."""
        if not result.skipped:
            self._in_a_row = 0
            return
        self._in_a_row += 1
        what = "gradient" if math.isfinite(result.loss) else "loss"
        cause = _cause(result.nonfinite)
        self._say(f"step {step}: update skipped, since its {what} is nonfinite; {cause}")
        if self._in_a_row < self._limit:
            return
        folder = self._run / "diagnostics" / f"step_{step:06d}"
        write_bundle(folder, self._run, result, samples, self._ranks)
        raise RunHalted(
            f"step {step}: {self._in_a_row} update(s) in a row were skipped because loss or "
            f"gradient was nonfinite; {cause}. {folder} holds the samples of the last one with "
            "their tokens and log-probabilities. The last checkpoint is unchanged: fix the cause "
            "(a lower learner.lr, a reward that gives NaN, …) and start again"
        )


def _cause(names: Sequence[str]) -> str:
    if not names:
        return "the values of every sample are finite: it overflowed on the way"
    return f"samples with nonfinite values: {listed(names, NAMED)}"


def write_bundle(
    folder: Path, run: Path, result: UpdateResult, samples: Sequence[Sample], ranks: Ranks
) -> None:
    """Writes what a skipped update saw; collective.

    samples-rank<r>.jsonl   one line per sample of a rank: tokens, advantage, log-probabilities,
                            entropy, and whether any of them is nonfinite
    update.json             loss, gradient norm, learning rate, the nonfinite samples
    config.yaml, run.json   settings and versions of the run
    metrics.jsonl           its last lines
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(_record(sample, result)) + "\n" for sample in samples]
    file = folder / f"samples-rank{ranks.rank}.jsonl"
    file.write_text("".join(lines), encoding="utf-8")
    if ranks.is_first:
        found = asdict(result)
        # The keys are those of the bundles of earlier versions.
        found |= {"refused": found.pop("skipped"), "sick": found.pop("nonfinite")}
        text = json.dumps(found, indent=2) + "\n"
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
        "sick": sample.id in result.nonfinite,
        "prompt_ids": sample.prompt_ids,
        "completion_ids": sample.completion_ids.tolist(),
        **{k: v.tolist() if isinstance(v, torch.Tensor) else v for k, v in values.items()},
    }
