"""What an update saves by no backward pass for samples of advantage 0, on a trained policy.

    python benchmarks/zero_advantage.py [--steps 40] [--repeats 3] [hydra overrides]

Trains the embedded policy as the quickstart does, with a method without reference KL, and at every
tenth step makes one update of all samples of that step twice, in turns: as the learner does it, and
with a loss that passes all samples backward. None of these updates is taken. Prints the share of
samples of advantage 0, and the first's CPU seconds divided by the second's, which programs beside
it hardly change; writes results/zero_advantage.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Sequence
from itertools import chain
from statistics import median

from jobs import job_of
from results import keep
from step_time import QUIET

from bandpo.batching import Sample
from bandpo.config.composition import compose
from bandpo.config.schema import Config
from bandpo.loss import PolicyLoss
from bandpo.run.job import Job
from bandpo.run.stops import Stops
from bandpo.train import train

EVERY = 10


class Thorough(PolicyLoss):
    """The same loss; all samples are passed backward."""

    vanishes_at_zero_advantage = False


def seconds(job: Job, losses: Sequence[PolicyLoss], batch: list[Sample], repeats: int) -> list:
    """Median CPU seconds of an update for each loss, in turns, its gradient discarded."""
    learner, taken = job.learner, [[] for _ in losses]
    usual, step = learner.loss, learner._step
    learner._step = lambda: learner.engine.zero_grad() or 0.0
    for _ in range(repeats):
        for loss, found in zip(losses, taken, strict=True):
            learner.loss = loss
            begun = time.process_time()
            learner.update(batch, 0)
            found.append(time.process_time() - begun)
    learner.loss, learner._step = usual, step
    learner.take_metrics()
    return [median(found) for found in taken]


def measure(overrides: list[str], steps: int, repeats: int) -> list[dict[str, float]]:
    """For every tenth step: the share of samples of advantage 0 and the update's seconds."""
    found: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        settings = [*QUIET, f"run.dir={folder}", f"trainer.steps={steps}", "method.kl_coef=0"]
        config = compose("train", [*settings, *overrides], Config)
        with job_of(config) as job:
            plain = job.learner.loss
            fields = {f.name: getattr(plain, f.name) for f in dataclasses.fields(plain)}
            losses, recorded = (plain, Thorough(**fields)), job.recorded

            def measured(batches: Sequence[list[Sample]], step: int) -> Sequence[list[Sample]]:
                if step % EVERY == 0:
                    batch = list(dict.fromkeys(chain.from_iterable(batches)))
                    zero = sum(sample.advantage == 0 for sample in batch) / len(batch)
                    skipping, thorough = seconds(job, losses, batch, repeats)
                    row = {"step": step, "zero": zero, "s": skipping, "all_s": thorough}
                    found.append({**row, "ratio": skipping / thorough})
                return recorded(batches, step)

            job.recorded = measured
            with Stops(job.ranks, None, job.tracker.say, job.started) as stops:
                train(job, stops)
    return found


def main() -> None:
    """Measures and keeps the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    arguments, overrides = parser.parse_known_args()
    rows = measure(overrides, arguments.steps, arguments.repeats)
    for row in rows:
        print(
            f"step {row['step']:>3}: {row['zero']:5.1%} of advantage 0, "
            f"{row['s']:.2f} s of {row['all_s']:.2f} s: {row['ratio']:.2f}"
        )
    keep("zero_advantage", {"overrides": overrides, "updates": rows})


if __name__ == "__main__":
    main()
