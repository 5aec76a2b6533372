#!/usr/bin/env python3
"""Writes docs/cost-model.md from the model in bandpo/planning/; run it after a change there.

The log that the model's rates were fitted to, and the fit itself, are here: a test holds the rates
against them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bandpo.config.sections.model import ModelConfig
from bandpo.model.architecture import shape_of
from bandpo.planning.gpus import GPUS, RESERVED, Cluster
from bandpo.planning.time import RATES, Rates, step_seconds
from bandpo.planning.workload import PROMPT_TOKENS, Workload

PERFECT = Rates(learner_efficiency=1.0, engine_overhead=0.0, answers_per_s=float("inf"))
"""Under which only the data sheets count."""


@dataclass(frozen=True)
class Log:
    """Seconds per step of a run that was measured, by phase, and the run's size."""

    cluster: Cluster
    tokens: float
    step: float
    phases: Mapping[str, float]
    mfu: float


# BandPO's release: Qwen2.5-3B, 8 GPUs of about 140 GB, groups of 16 (its own training log).
RELEASE_LOG = Log(
    cluster=Cluster(8, GPUS["H200"]),
    tokens=3.55e6,
    step=108.0,
    phases={
        "generation": 37.0,
        "old_logprob": 12.5,
        "reference": 12.0,
        "update": 42.0,
        "reward": 1.0,
    },
    mfu=0.24,
)
SHAPE = shape_of(ModelConfig(path="Qwen/Qwen2.5-3B-Instruct", dtype="bfloat16"))


def release_workload() -> Workload:
    """The step that `RELEASE_LOG` measured, at its mean length; activations recomputed."""
    samples = 256 * 16
    return Workload(
        samples=samples,
        updates=4,
        prompt_tokens=PROMPT_TOKENS,
        mean_tokens=RELEASE_LOG.tokens / samples - PROMPT_TOKENS,
        longest_tokens=4096,
        concurrency=samples // RELEASE_LOG.cluster.count,
    )


def fitted_rates() -> Rates:
    """The three rates under which the model reproduces three phases of the release's log.

    Fitted: the learner's efficiency to the update, the engine's overhead to generation, answers
    per second to the reward. The log's other two phases and its MFU are not used.
    """
    work, log = release_workload(), RELEASE_LOG
    ideal = step_seconds(SHAPE, work, log.cluster, PERFECT)
    return Rates(
        learner_efficiency=ideal["update"] / log.phases["update"],
        engine_overhead=(log.phases["generation"] - ideal["generation"]) / work.longest_tokens,
        answers_per_s=work.samples / log.cluster.count / log.phases["reward"],
    )


FITTED = {
    "generation": "fitted: the engine's overhead",
    "old_logprob": "predicted",
    "reference": "predicted",
    "update": "fitted: the learner's efficiency",
    "reward": "fitted: answers per second",
}

PAGE = Path(__file__).with_name("cost-model.md.template").read_text(encoding="utf-8")


def _rows() -> str:
    work, log = release_workload(), RELEASE_LOG
    ideal = step_seconds(SHAPE, work, log.cluster, PERFECT)
    model = step_seconds(SHAPE, work, log.cluster)
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
    """Seconds of a step by phase; `work` tells how many samples a GPU's engine takes at once."""
    return step_seconds(SHAPE, work, Cluster(count, GPUS["H200"]))


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
    model = step_seconds(SHAPE, work, log.cluster)
    passes = log.phases["old_logprob"] + log.phases["reference"]
    bytes_per_token = SHAPE.matmul_parameters * work.width
    per_step = RATES.engine_overhead + bytes_per_token / GPUS["H200"].bandwidth
    weights = SHAPE.parameters * work.width
    prompts = 256
    nodes = 1024 // 8
    return PAGE.format(
        gpus=", ".join(GPUS),
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
        floor=work.longest_tokens * per_step,
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
