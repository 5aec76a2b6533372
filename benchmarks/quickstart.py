"""The quickstart on other machines, as far as one can be them: seeds × threads × instruction sets.

    python benchmarks/quickstart.py [--seeds 0 1 2] [--steps 40]

Runs what scripts/quickstart.sh runs, from the policy that ships, with one thread and with two, with
the CPU's own instructions and with those of an AVX2 machine (ATEN_CPU_CAPABILITY). Roundings
differ, and so do the samples after a few steps; the conclusion must not. results/quickstart.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

from results import keep

CAPABILITIES = ("default", "avx2")
METRICS = {"mean@32": "eval/arithmetic/mean@32", "pass@32": "eval/arithmetic/pass@32"}


def train(folder: Path, seed: int, threads: int, capability: str, steps: int) -> dict[str, Any]:
    """One quickstart: held-out accuracy before and after, and seconds of training."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    environment.pop("ATEN_CPU_CAPABILITY", None)
    if capability != "default":
        environment["ATEN_CPU_CAPABILITY"] = capability
    command = [sys.executable, "-m", "bandpo.cli", "train", f"run.dir={folder}"]
    command += ["trainer.resume=never", f"seed={seed}", f"trainer.steps={steps}"]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    figures: dict[str, Any] = {"seed": seed, "threads": threads, "capability": capability}
    for name, metric in METRICS.items():
        figures |= {f"{name} before": lines[0][metric], f"{name} after": lines[-1][metric]}
    return figures | {"training_s": sum(line.get("time/step_s", 0.0) for line in lines[1:])}


def main() -> None:
    """Runs all cells, one after another."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=40)
    arguments = parser.parse_args()
    runs = []
    with tempfile.TemporaryDirectory() as scratch:
        for cell in product(arguments.seeds, arguments.threads, CAPABILITIES):
            folder = Path(scratch) / "-".join(map(str, cell))
            runs.append(train(folder, *cell, steps=arguments.steps))
            print(json.dumps(runs[-1]), flush=True)
    after = [run["mean@32 after"] for run in runs]
    keep("quickstart", {"steps": arguments.steps, "lowest": min(after), "runs": runs})


if __name__ == "__main__":
    main()
