"""Finished runs that nobody trained: the files that a table reads, with values of our choosing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import yaml

from bandpo.evaluation.intervals import Estimate
from bandpo.evaluation.summary import ProblemResult, Summary, write_summaries
from bandpo.tables.runs import PlannedRun

Counts = Mapping[str, Sequence[int]]  # benchmark → right samples of each problem


def finish(run: PlannedRun, counts: Counts, entropy: Sequence[float]) -> None:
    """Writes what a run leaves: its configuration, metrics a step, and the last evaluation."""
    n = run.config.eval.n
    run.folder.mkdir(parents=True)
    (run.folder / "config.yaml").write_text(yaml.safe_dump(run.config.model_dump(mode="json")))
    lines = [{"step": 0}]
    lines += [{"step": i, "policy/entropy": value} for i, value in enumerate(entropy, 1)]
    (run.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run.summary.parent.mkdir(parents=True)
    summaries = [
        Summary(
            benchmark=name,
            settings={"n": n},
            metrics={f"mean@{n}": Estimate(0, 0, 0)},
            problems=[
                ProblemResult(f"{name}-{i}", "1", n, right, 0.0, 1.0, 0, {})
                for i, right in enumerate(rights)
            ],
        )
        for name, rights in counts.items()
    ]
    write_summaries(run.summary.parent, summaries)
