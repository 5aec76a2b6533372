"""What pruning samples saves of the learner's time, and what it does to learning.

    python benchmarks/pruning.py [--steps 24] [--seeds 1] [hydra overrides]

Trains the embedded policy with `learner.prune` at 0, 0.5 and 0.9, with a reference KL, so that no
sample is free. For each: sampled tokens per second of the learner (scoring and updates), CPU
seconds, which programs beside it hardly change, and wall-clock seconds; seconds per step; and the
share of right answers step by step. Writes results/pruning.json.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

from jobs import job_of
from results import keep
from step_time import QUIET

from bandpo.artifacts.folder import read_metrics
from bandpo.config.composition import compose
from bandpo.config.schema import Config
from bandpo.run.host import Host
from bandpo.run.stops import Stops
from bandpo.train import train

SHARES = (0.0, 0.5, 0.9)
SETTINGS = [
    *("rollout=hf", "method=grpo", "rollout.prompts_per_step=16", "rollout.group_size=16"),
    "learner.updates_per_rollout=2",
]
LAST = 6  # steps that a run's end is the mean of


class Clock:
    """Wall-clock and CPU seconds spent in some functions."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def of(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed."""

        def timed(*arguments: Any, **named: Any) -> Any:
            wall, cpu = time.perf_counter(), time.process_time()
            try:
                return function(*arguments, **named)
            finally:
                self.seconds["wall"] += time.perf_counter() - wall
                self.seconds["cpu"] += time.process_time() - cpu

        return timed


def course(host: Host, share: float, seed: int, steps: int, more: list[str]) -> dict[str, Any]:
    """One run: the learner's seconds, and the share of right answers of each step."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        own = [f"run.dir={folder}", f"trainer.steps={steps}", f"seed={seed}"]
        settings = [*QUIET, *SETTINGS, *own, f"learner.prune={share}", *more]
        config = compose("train", settings, Config)
        with job_of(config, host) as job:
            job.learner.prepare = clock.of(job.learner.prepare)
            job.learner.update = clock.of(job.learner.update)
            with Stops(job.ranks, None, job.tracker.say, job.started) as stops:
                begun = time.process_time()
                train(job, stops)
                cpu = time.process_time() - begun
        lines = [line for line in read_metrics(Path(folder)) if line["step"] > 0]
    tokens = sum(line["length/tokens"] for line in lines)
    correct = [line["reward/correct_frac"] for line in lines]
    return {
        "pruned": fmean(line.get("learn/pruned_frac", 0.0) for line in lines),
        "learner_cpu_s": clock.seconds["cpu"] / steps,
        "learner_wall_s": clock.seconds["wall"] / steps,
        "tokens_per_cpu_s": tokens / clock.seconds["cpu"],
        "tokens_per_wall_s": tokens / clock.seconds["wall"],
        "step_cpu_s": cpu / steps,
        "step_wall_s": fmean(line["time/step_s"] for line in lines),
        "correct_at_the_end": fmean(correct[-LAST:]),
        "correct": correct,
    }


def main() -> None:
    """Prints a line for each share, and keeps the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--seeds", type=int, default=1)
    options, overrides = parser.parse_known_args()
    rows = []
    with Host() as host:
        for share in SHARES:
            seeds = range(options.seeds)
            runs = [course(host, share, seed, options.steps, overrides) for seed in seeds]
            means = {k: fmean(run[k] for run in runs) for k in runs[0] if k != "correct"}
            rows.append({"prune": share, **means, "runs": runs})
            print(
                f"prune {share:3.1f}: {means['pruned']:5.1%} not computed, learner "
                f"{means['learner_cpu_s']:.2f} CPU s per step ({means['tokens_per_cpu_s']:,.0f} "
                f"tokens/s), step {means['step_cpu_s']:.2f} CPU s, right at the end "
                f"{means['correct_at_the_end']:.3f}",
                flush=True,
            )
    keep("pruning", {"steps": options.steps, "overrides": overrides, "shares": rows})


if __name__ == "__main__":
    main()
