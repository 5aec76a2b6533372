"""The share of groups with spread, with each rule of drawing, at equal steps.

    python benchmarks/curriculum.py [--steps 32] [--seeds 1] [hydra overrides]

Trains the embedded policy on few problems, so that they come again, with shuffled epochs and with
every rule of configs/sampler. Groups without spread teach nothing: their advantages are 0. Prints
means over all steps after the first epoch and writes results/curriculum.json. No timing: it may run
beside other programs.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from results import keep
from step_time import QUIET

from bandpo.artifacts.folder import read_metrics
from bandpo.config.composition import compose, config_dir
from bandpo.config.schema import Config
from bandpo.run.host import Host
from bandpo.train import run

PROBLEMS, PROMPTS, SAMPLES = 128, 16, 4
SETTINGS = [
    *("rollout=hf", f"rollout.prompts_per_step={PROMPTS}", f"rollout.group_size={SAMPLES}"),
    *(f"data.train.count={PROBLEMS}", "method.kl_coef=0", "learner.updates_per_rollout=2"),
]
RESTS = {
    "rest": ["data.sampler.in_a_row=1", "data.sampler.steps=8"],
    "medium": ["data.sampler.steps=8"],
}
"""Instead of the step counts in the files, which suit thousands of problems."""


def figures(lines: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means of the steps after the first epoch."""
    later = [line for line in lines if line["step"] > PROBLEMS // PROMPTS]
    return {
        "spread": 1 - fmean(line["reward/zero_std_groups"] / PROMPTS for line in later),
        "correct": fmean(line["reward/correct_frac"] for line in later),
        "grad_norm": fmean(line["grad/norm"] for line in later),
    }


def measure(host: Host, rule: str | None, seed: int, steps: int, more: list[str]) -> dict:
    """One run's figures."""
    chosen = [f"sampler={rule}", *RESTS.get(rule, [])] if rule else []
    with tempfile.TemporaryDirectory() as folder:
        settings = [*QUIET, *SETTINGS, *chosen, f"trainer.steps={steps}", f"seed={seed}"]
        run(compose("train", [*settings, f"run.dir={folder}", *more], Config), host)
        rows = (Path(folder) / "problems.jsonl").read_text().splitlines()
        seen = [json.loads(row)["seen"] for row in rows]
        return {
            **figures(read_metrics(Path(folder))),
            "most_seen": max(seen),
            "problems": len(seen),
        }


def main() -> None:
    """Prints a line for each rule, and keeps the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    rules = [None, *sorted(path.stem for path in (config_dir() / "sampler").glob("*.yaml"))]
    rows = []
    with Host() as host:
        for rule in rules:
            seeds = range(options.seeds)
            found = [measure(host, rule, s, options.steps, options.overrides) for s in seeds]
            means = {name: fmean(row[name] for row in found) for name in found[0]}
            rows.append({"sampler": rule or "none", **means, "runs": found})
            print(
                f"{rule or 'none':14} groups with spread {means['spread']:.3f}  "
                f"correct {means['correct']:.3f}"
            )
    keep("curriculum", {"steps": options.steps, "problems": PROBLEMS, "rules": rows})


if __name__ == "__main__":
    main()
