"""The entropy of the embedded policy while it learns, with and without a floor.

    python benchmarks/entropy_floor.py [--steps 30] [--seeds 0 1] [--floor 0.03] [hydra overrides]

Trains it from each seed without an entropy bonus and with the floor. Prints the mean entropy [nats]
of the first and the last five steps, the steps below the floor, the largest coefficient and the
mean reward of the last five steps; writes results/entropy_floor.json with every step's.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from statistics import fmean

from jobs import job_of
from results import keep
from step_time import QUIET

from bandpo.config.composition import compose
from bandpo.config.schema import Config
from bandpo.run.stops import Stops
from bandpo.train import train

LAST = 5
SHOWN = {"entropy": "policy/entropy", "coef": "entropy/coef", "reward": "reward/mean"}


def curves(overrides: list[str]) -> dict[str, list[float]]:
    """Entropy, coefficient and reward of each step of a run."""
    with tempfile.TemporaryDirectory() as folder:
        config = compose("train", [*QUIET, f"run.dir={folder}", *overrides], Config)
        with job_of(config) as job, Stops(job.ranks, None, job.tracker.say, job.started) as stops:
            train(job, stops)
        text = (Path(folder) / "metrics.jsonl").read_text(encoding="utf-8")
    lines = [line for line in map(json.loads, text.splitlines()) if SHOWN["entropy"] in line]
    return {short: [line.get(name, 0.0) for line in lines] for short, name in SHOWN.items()}


def summary(found: dict[str, list[float]], floor: float) -> dict[str, float]:
    """The figures of a run that are printed."""
    entropy = found["entropy"]
    return {
        "first": fmean(entropy[:LAST]),
        "last": fmean(entropy[-LAST:]),
        "lowest": min(entropy),
        "steps_below": sum(value < floor for value in entropy),
        "largest_coef": max(found["coef"]),
        "reward": fmean(found["reward"][-LAST:]),
    }


def main() -> None:
    """Trains and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--floor", type=float, default=0.03)
    parser.add_argument("--coef-step", type=float, default=0.2)
    parser.add_argument("--coef-max", type=float, default=2.0)
    arguments, overrides = parser.parse_known_args()
    floor = [
        f"method.entropy_floor={arguments.floor}",
        f"method.entropy_coef_step={arguments.coef_step}",
        f"method.entropy_coef_max={arguments.coef_max}",
    ]
    settings = {"none": [], "floor": floor}
    runs = []
    for seed in arguments.seeds:
        for name, own in settings.items():
            common = [f"trainer.steps={arguments.steps}", f"seed={seed}", *own]
            found = curves([*common, *overrides])
            row = {"seed": seed, "bonus": name, **summary(found, arguments.floor)}
            print(
                " ".join(
                    f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()
                )
            )
            runs.append({**row, "curves": found})
    keep("entropy_floor", {"settings": {**vars(arguments), "overrides": overrides}, "runs": runs})


if __name__ == "__main__":
    main()
