"""Where a training step's time goes on the embedded policy, with vLLM in process.

    python benchmarks/step_time.py [--steps 10] [hydra overrides]

Runs `bandpo train` as the quickstart does, without evaluations, and times the parts of every step
from outside: the engine's sampling, the wait for the last verdicts, the learner's passes and
updates, the weight sync, and what remains. Prints each as a share of the step and writes
results/step_time.json. Held to: at least 85% in generation and the learner's compute.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from statistics import median
from typing import Any

from jobs import job_of
from results import keep

from bandpo.config.composition import compose
from bandpo.config.schema import Config
from bandpo.run.stops import Stops
from bandpo.train import train

WARMUP = 2
QUIET = [
    "eval.benchmarks=[]",
    "trainer.checkpoint_every=0",
    "trainer.sample_every=1000000",
    "trainer.resume=never",
]


class Stopwatch:
    """Seconds by part since the last `take`."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = defaultdict(float)

    def of(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its calls timed."""

        def timed(*arguments: Any, **named: Any) -> Any:
            begun = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                self._seconds[part] += time.perf_counter() - begun

        return timed

    def of_items(self, part: str, function: Callable[..., Iterable[Any]]) -> Callable[..., Any]:
        """The function, the making of each of its items timed."""

        def timed(*arguments: Any, **named: Any) -> Iterator[Any]:
            items = iter(function(*arguments, **named))
            following = self.of(part, lambda: next(items, None))
            while (item := following()) is not None:
                yield item

        return timed

    def take(self) -> dict[str, float]:
        """The times so far; counting starts again at zero."""
        taken, self._seconds = dict(self._seconds), defaultdict(float)
        return taken


def measure(overrides: list[str], steps: int) -> list[dict[str, float]]:
    """Seconds of each part of every step after warm-up."""
    watch, found = Stopwatch(), []
    with tempfile.TemporaryDirectory() as folder:
        total = f"trainer.steps={steps + WARMUP}"
        config = compose("train", [*QUIET, f"run.dir={folder}", total, *overrides], Config)
        with job_of(config) as job:
            engine = job.actor.engine
            engine.generate = watch.of_items("generation", engine.generate)
            job.learner.prepare = watch.of("learner: old and reference", job.learner.prepare)
            job.learner.update = watch.of("learner: updates", job.learner.update)
            job.actor.sync = watch.of("weight sync and probe", job.actor.sync)
            log = job.tracker.log

            def logged(step: int, metrics: dict[str, float]) -> None:
                parts, whole = watch.take(), metrics.get("time/step_s", 0.0)
                waited = metrics.get("time/rollout_s", 0.0) - parts.get("generation", 0.0)
                if step > WARMUP:
                    parts["wait for verdicts"] = waited
                    parts["remaining"] = whole - sum(parts.values())
                    found.append({**parts, "step": whole})
                log(step, metrics)

            job.tracker.log = logged
            with Stops(job.ranks, None, job.tracker.say, job.started) as stops:
                train(job, stops)
    return found


def main() -> None:
    """Measures and keeps the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10)
    arguments, overrides = parser.parse_known_args()
    steps = measure(overrides, arguments.steps)
    seconds = {part: median(step[part] for step in steps) for part in steps[0]}
    shares = {
        part: median(step[part] / step["step"] for step in steps)
        for part in seconds
        if part != "step"
    }
    compute = sum(s for part, s in shares.items() if part.startswith(("generation", "learner")))
    for part, share in sorted(shares.items(), key=lambda item: -item[1]):
        print(f"{part:<28} {seconds[part]:8.3f} s {share:7.1%}")
    print(f"{'generation and learner':<28} {'':>10} {compute:7.1%}  (at least 85%)")
    keep(
        "step_time",
        {
            "overrides": overrides,
            "steps": len(steps),
            "median_seconds": seconds,
            "shares": shares,
            "generation_and_learner": compute,
        },
    )


if __name__ == "__main__":
    main()
