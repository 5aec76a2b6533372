"""The entropy of the embedded policy while it learns, with and without a floor.

    python benchmarks/entropy_floor.py [--steps 30] [--seeds 0 1] [--floor 0.03] [hydra overrides]

Trains it from each seed without an entropy bonus and with the floor, two runs at a time. Prints the
mean entropy [nats] of the first and the last five steps, the steps below the floor, the largest
coefficient and the mean reward of the last five steps; writes results/entropy_floor.json with every
step's.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean

from results import keep
from step_time import QUIET

from bandpo.artifacts.folder import read_metrics

LAST = 5
SHOWN = {"entropy": "policy/entropy", "coef": "entropy/coef", "reward": "reward/mean"}


def curves(overrides: Sequence[str]) -> dict[str, list[float]]:
    """Entropy, coefficient and reward of each step of a run, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "bandpo.cli", "train", *QUIET, f"run.dir={folder}"]
        subprocess.run([*command, *overrides], check=True, capture_output=True)
        lines = [line for line in read_metrics(Path(folder)) if SHOWN["entropy"] in line]
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
    wanted = list(itertools.product(arguments.seeds, {"none": [], "floor": floor}.items()))
    steps = f"trainer.steps={arguments.steps}"
    with ThreadPoolExecutor(2) as pool:
        commands = [[steps, f"seed={seed}", *own, *overrides] for seed, (_, own) in wanted]
        runs = []
        for (seed, (name, _)), found in zip(wanted, pool.map(curves, commands), strict=True):
            figures = summary(found, arguments.floor)
            shown = " ".join(f"{key} {value:.3g}" for key, value in figures.items())
            print(f"seed {seed} bonus {name} {shown}", flush=True)
            runs.append({"seed": seed, "bonus": name, **figures, "curves": found})
    keep("entropy_floor", {"settings": {**vars(arguments), "overrides": overrides}, "runs": runs})


if __name__ == "__main__":
    main()
