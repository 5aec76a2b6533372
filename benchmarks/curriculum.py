"""The share of groups with spread, with each rule of drawing, at equal steps.

    python benchmarks/curriculum.py [--steps 32] [--seeds 1] [hydra overrides]

Trains the embedded policy on few problems, so that they come again, of which half have a wrong
reference answer, with shuffled epochs and with every rule of configs/sampler. The learning rate is
so small that the policy hardly changes and the draws alone differ. Groups without spread teach
nothing: their advantages are 0. Prints means over all steps after the first epoch and writes
results/curriculum.json. No timing: it may run beside other programs.
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
from bandpo.data.arithmetic import problems
from bandpo.run.host import Host
from bandpo.train import run

PROBLEMS, PROMPTS, SAMPLES = 96, 8, 8
SETTINGS = [
    *("model.path=embedded", "policy=embedded", "data=_own", "data.template=none"),
    *("data.max_prompt_tokens=64", "method.kl_coef=0", "learner.lr=1e-6", "rollout=hf"),
    *(f"rollout.prompts_per_step={PROMPTS}", f"rollout.group_size={SAMPLES}"),
]


def write_problems(path: Path) -> None:
    """Arithmetic problems, every other one with a wrong reference answer."""
    rows = [
        {"id": p.id, "problem": p.problem, "answer": str(int(p.answer) + 1000 * (i % 2))}
        for i, p in enumerate(problems("train", PROBLEMS))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


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
    chosen = [f"sampler={rule}"] if rule else []
    chosen += ["data.sampler.in_a_row=1"] if rule == "rest" else []  # few groups of a problem
    with tempfile.TemporaryDirectory() as folder:
        data, place = Path(folder) / "problems.jsonl", Path(folder) / "run"
        write_problems(data)
        settings = [*QUIET, *SETTINGS, *chosen, f"trainer.steps={steps}", f"seed={seed}"]
        settings += [f"data.train={data}", f"run.dir={place}"]
        run(compose("train", [*settings, *more], Config), host)
        rows = (place / "problems.jsonl").read_text().splitlines()
        seen = [json.loads(row)["seen"] for row in rows]
        return {
            **figures(read_metrics(place)),
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
