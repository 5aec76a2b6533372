"""`bandpo train`: prompts → rollout → reward → advantage → loss → step → sync."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path

from bandpo.artifacts.closing import gains, next_commands
from bandpo.artifacts.display import Display
from bandpo.artifacts.figures import plot_timeline, plot_training
from bandpo.artifacts.folder import read_metrics
from bandpo.artifacts.hub_push import push_policies
from bandpo.artifacts.profiling import traced
from bandpo.config.schema import Config
from bandpo.errors import UserError
from bandpo.learner.updates.result import update_metrics
from bandpo.rollout.draws import Rollout
from bandpo.rollout.prefetch import Rollouts
from bandpo.run.console import RunLog, protect_output
from bandpo.run.host import Host
from bandpo.run.job import Job
from bandpo.run.stops import Stops


def train(job: Job, stops: Stops) -> bool:
    """Trains, from the checkpoint on if there is one; returns whether the last step was reached."""
    actor, learner, tracker, trainer = job.actor, job.learner, job.tracker, job.config.trainer
    rollouts = Rollouts(
        version=lambda: actor.engine.weight_version,
        collect=partial(collect, job),
        last=trainer.steps,
        lag=job.config.rollout.lag,
        waiting=job.waiting,
    )
    actor.sync()
    if job.start == 0:
        tracker.log(0, job.evaluate(0))
    else:
        job.checkpoints.export_missing()
    for step in traced(range(job.start + 1, trainer.steps + 1), job.trace_file):
        clock = tracker.begin(step)
        with clock("rollout"), job.checkpoints.rescue(step - 1):
            rollout = rollouts.next(step)
        actor.engine.sleep()
        with clock("exchange"):
            batches = job.batches(rollout.groups, step)
        with clock("logprob"):
            learner.prepare(batches)
        with clock("learn"):
            updates = [job.update(batch, step) for batch in job.recorded(batches, step)]
        with clock("rollout"):
            rollouts.settle()
        with clock("sync"):
            probe = actor.sync(rollout.groups)
        metrics = {
            **rollout.metrics,
            **rollouts.metrics(),
            **learner.take_metrics(),
            **update_metrics(updates),
            **probe,
        }
        metrics |= clock.metrics(tokens=metrics["length/tokens"])
        last = step == trainer.steps
        if last or is_due(step, trainer.eval_every):
            with job.checkpoints.rescue(step, metrics, rollouts.waiting):
                metrics |= job.evaluate(step)
        tracker.log(step, metrics)
        if last or is_due(step, trainer.sample_every):
            tracker.log_samples(step, rollout.groups, job.ranks)
        job.check_alarms(step, metrics)
        reason = None if last else stops.reason()
        due = last or reason is not None or is_due(step, trainer.checkpoint_every)
        saved = due and job.checkpoints.save(step, metrics, rollouts.waiting)
        if reason:
            place = "there" if saved else "the checkpoint before it"
            tracker.say(
                f"{reason}: stopped after step {step}; started again, it resumes from {place}"
            )
            return False
    return True


def collect(job: Job, step: int) -> Rollout:
    """The scored groups of a step, of all ranks, from one batch or as many as its filter takes."""
    draws = job.draws(step)
    while not draws.ended:
        draws.add(job.actor.rollout(draws.next_prompts()))
    for note in draws.notes():
        job.tracker.say(f"step {step}: {note}")
    return draws.rollout()


def is_due(step: int, every: int) -> bool:
    """Whether something that happens every `every` steps (0: never) happens at this one."""
    return every > 0 and step % every == 0


def run(config: Config, host: Host | None = None, command: str = "") -> None:
    """Trains one run from its configuration, on the engine of `host` if one is given.

    `command` is the command line for model cards.
    """
    protect_output()
    first = os.environ.get("RANK", "0") == "0"
    with (
        RunLog() as log,
        Display(log.stdout, log.stderr, log.file, active=first) as display,
    ):
        with Job(config, log, display, host, command) as job:
            with Stops(job.ranks, config.trainer.max_hours, job.tracker.say, job.started) as stops:
                finished = train(job, stops)
            if finished and first:
                _close(job, display, command if job.ranks.size == 1 else "")
        if finished and first:  # the GPUs are free
            push_policies(config, display.say)


def _close(job: Job, display: Display, command: str) -> None:
    """Draws the figures of a finished run, and shows its gain and what to type next."""
    folder, steps = job.folder, job.config.trainer.steps
    try:
        lines = read_metrics(folder)
    except UserError:  # the disk has not taken them
        lines = []
    minutes = (time.time() - job.started) / 60
    display.say(f"done: {steps} steps in {minutes:.1f} min; {folder} has {_draw(folder)}")
    for gain in gains(lines):
        display.entries("", gain.split("  "))
    display.say(f"checkpoint: {folder}/checkpoints/latest/hf", wrap=False)
    for purpose, text in next_commands(folder, lines, steps, command):
        display.say(f"next, {purpose}:")
        display.say(f"  {text}", wrap=False)


def _draw(folder: Path) -> str:
    """Draws the figures of a run and names them, or the reason why there are none."""
    try:
        figures = (plot_training(folder), plot_timeline(folder))
    except Exception as error:
        return f"no figures: {error}; bandpo plot training {folder} draws them"
    return ", ".join(["metrics.jsonl", *(str(path.relative_to(folder)) for path in figures)])
