"""Time that `rollout.lag=1` saves: the same training with a real vLLM server, lag 0 against lag 1.

    python benchmarks/lag.py [--steps 12] [hydra overrides]

The server has one core, the learner another. Two runs of each kind take turns; medians of the
steps after warm-up count. Prints how many times faster a step is with lag 1, beside the most there
is to gain (generation and learning side by side), and writes results/lag.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from results import keep
from serving import serving

from bandpo.model.source import find_model

WARMUP = 3
LENGTH = 256
TRAIN = [
    *("rollout=vllm_server", "eval.benchmarks=[]", "trainer.checkpoint_every=0"),
    *("trainer.sample_every=1000000", "trainer.resume=never"),
]


def on(core: int) -> list[str]:
    """Binds a command to a core."""
    return ["taskset", "-c", str(core)]


def train(url: str, lag: int, folder: Path, steps: int, overrides: list[str]) -> list[dict]:
    """The metrics of the steps after warm-up; the last step starts no rollout."""
    command = [*on(0), sys.executable, "-m", "bandpo.cli", "train", *TRAIN, f"run.dir={folder}"]
    command += [f"rollout.lag={lag}", f"rollout.engine.urls=[{url}]"]
    command += [f"trainer.steps={steps + WARMUP + 1}", *overrides]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return lines[WARMUP + 1 : -1]


def main() -> None:
    """Runs both kinds in turns and keeps the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=12)
    arguments, overrides = parser.parse_known_args()
    found: dict[int, list[dict]] = {0: [], 1: []}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        with serving(find_model("embedded").path, folder / "server.log", LENGTH, on(1)) as url:
            for turn in range(2):
                for lag in found:
                    run = folder / f"lag{lag}-{turn}"
                    found[lag] += train(url, lag, run, arguments.steps, overrides)
    steps = {lag: median(line["time/step_s"] for line in found[lag]) for lag in found}
    rollout = median(line["time/rollout_s"] for line in found[0])
    overlap = median(line["rollout/overlap_s"] for line in found[1])
    most = steps[0] / max(rollout, steps[0] - rollout)
    print(f"step: {steps[0]:.2f} s with lag 0, {steps[1]:.2f} s with lag 1")
    print(f"lag 0 / lag 1: {steps[0] / steps[1]:.2f} (at most {most:.2f})")
    keep(
        "lag",
        {
            "overrides": overrides,
            "steps": {str(lag): len(lines) for lag, lines in found.items()},
            "step_s": {str(lag): seconds for lag, seconds in steps.items()},
            "rollout_s": rollout,
            "overlap_s": overlap,
            "ratio": steps[0] / steps[1],
            "at_most": most,
        },
    )


if __name__ == "__main__":
    main()
