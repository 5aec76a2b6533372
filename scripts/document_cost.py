#!/usr/bin/env python3
"""Writes docs/cost-model.md from the model in bandpo/planning/; run it after a change there."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from bandpo.model.architecture import shape_of
from bandpo.planning.gpus import CARDS, RESERVED, Cluster
from bandpo.planning.time import (
    PERFECT,
    RELEASE_LOG,
    RELEASE_MODEL_CONFIG,
    Workload,
    fitted_rates,
    release_workload,
    step_seconds,
)

SHAPE = shape_of(RELEASE_MODEL_CONFIG)
RATES = fitted_rates(SHAPE)
FITTED = {
    "generation": "fitted: the engine's overhead",
    "old_logprob": "predicted",
    "reference": "predicted",
    "update": "fitted: the learner's efficiency",
    "reward": "fitted: answers a second",
}

PAGE = Path(__file__).with_name("cost-model.md.template").read_text(encoding="utf-8")


def _rows() -> str:
    work, log = release_workload(), RELEASE_LOG
    ideal = step_seconds(SHAPE, work, log.cluster, PERFECT)
    model = step_seconds(SHAPE, work, log.cluster, RATES)
    lines = [
        f"| {phase} | {seconds:g} | {ideal[phase]:.1f} | {model[phase]:.1f} "
        f"| {_percent(model[phase] / seconds - 1)} | {FITTED[phase]} |"
        for phase, seconds in log.phases.items()
    ]
    total, bound = sum(model.values()), sum(ideal.values())
    off = _percent(total / log.step - 1)
    lines.append(f"| **step** | {log.step:g} | {bound:.1f} | {total:.1f} | {off} | |")
    return "\n".join(lines)


def _percent(share: float) -> str:
    return f"{round(share, 3) + 0.0:+.0%}"  # no −0%


def _at(count: int, work: Workload) -> dict[str, float]:
    """A step's phases; a card's slots hold all of its samples where there are few."""
    return step_seconds(SHAPE, work, Cluster(count, CARDS["H200"]), RATES)


def _paper_step() -> Workload:
    return dataclasses.replace(release_workload(), samples=256 * 32)


def _scaling() -> str:
    work = _paper_step()
    first = sum(_at(8, work).values())
    lines = []
    for count in (8, 64, 1024):
        phases = _at(count, work)
        total = sum(phases.values())
        cells = " | ".join(f"{seconds:.1f}" for seconds in phases.values())
        lines.append(f"| {count:,} | {cells} | {total:.1f} | {first / total:.1f}× |")
    return "\n".join(lines)


def document() -> str:
    """The whole page."""
    work, log, paper = release_workload(), RELEASE_LOG, _paper_step()
    model = step_seconds(SHAPE, work, log.cluster, RATES)
    passes = log.phases["old_logprob"] + log.phases["reference"]
    bytes_a_token = SHAPE.matmul_parameters * work.width
    a_step = RATES.engine_overhead + bytes_a_token / CARDS["H200"].bandwidth
    weights = SHAPE.parameters * work.width
    prompts = 256
    nodes = 1024 // 8
    return PAGE.format(
        cards=", ".join(CARDS),
        tokens=log.tokens / 1e6,
        step=log.step,
        efficiency=RATES.learner_efficiency,
        overhead=1e3 * RATES.engine_overhead,
        answers=RATES.answers_per_s,
        rows=_rows(),
        share=passes / (model["old_logprob"] + model["reference"]) - 1,
        unnamed=log.step - sum(log.phases.values()),
        mfu=log.mfu,
        model_mfu=RATES.learner_efficiency * 3 / 4,
        ours=0.75 * model["old_logprob"],
        ours_log=f"{log.phases['old_logprob']:g}",
        samples=paper.samples,
        length=paper.length,
        heads=" | ".join(model),
        rule="|---" * (len(model) + 3) + "|",
        scaling=_scaling(),
        longest=work.longest_tokens,
        floor=work.longest_tokens * a_step,
        prompts=prompts,
        updates=work.updates,
        per_update=prompts // work.updates,
        needed=1024 * work.updates,
        few=paper.tokens / work.updates / 1024,
        gib=weights / 2**30,
        sync=_at(1024, paper)["sync"],
        nodes=nodes,
        serial=nodes * weights / 50e9,
        verify=_at(8, paper)["reward"],
        service=paper.samples,
        reserved=RESERVED,
    )


if __name__ == "__main__":
    target = Path(__file__).resolve().parents[1] / "docs" / "cost-model.md"
    target.write_text(document())
    print(f"wrote {target.name}")
