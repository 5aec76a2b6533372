"""`bandpo train`: prompts → rollout → reward → advantage → loss → step → sync."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from bandpo.artifacts.figures import plot_timeline, plot_training
from bandpo.artifacts.profiling import traced
from bandpo.artifacts.tracking import Clock
from bandpo.config.schema import Config
from bandpo.learner.learner import update_metrics
from bandpo.rollout.draws import Rollout
from bandpo.rollout.prefetch import Rollouts
from bandpo.run.console import secure_streams
from bandpo.run.host import Host
from bandpo.run.job import Job
from bandpo.run.stops import Stops


def train(job: Job, stops: Stops) -> bool:
    """Trains from the checkpoint on, if there is one; whether the last step was reached."""
    learner, tracker, trainer = job.learner, job.tracker, job.config.trainer
    rollouts = Rollouts(
        version=lambda: job.engine.weight_version,
        collect=partial(collect, job),
        last=trainer.steps,
        lag=job.config.rollout.lag,
        waiting=job.waiting,
    )
    job.sync()
    if job.start == 0:
        tracker.log(0, job.evaluate(0))
    else:
        job.checkpoints.export_missing()
    for step in traced(range(job.start + 1, trainer.steps + 1), job.trace_file):
        clock = Clock()
        with clock("rollout"), job.rescue(step - 1):
            rollout = rollouts.next(step)
        job.engine.sleep()
        with clock("exchange"):
            batches = job.batches(rollout.groups, step)
        with clock("logprob"):
            learner.prepare(batches)
        with clock("learn"):
            updates = [job.update(batch, step) for batch in job.recorded(batches, step)]
        with clock("rollout"):
            rollouts.settle()
        with clock("sync"):
            probe = job.sync(rollout.groups)
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
            with job.rescue(step, metrics, rollouts.waiting):
                metrics |= job.evaluate(step)
        tracker.log(step, metrics)
        if last or is_due(step, trainer.sample_every):
            tracker.log_samples(step, rollout.groups)
        job.check_alarms(step, metrics)
        reason = None if last else stops.reason()
        due = last or reason is not None or is_due(step, trainer.checkpoint_every)
        saved = due and job.save(step, metrics, rollouts.waiting)
        if reason:
            place = "there" if saved else "the checkpoint before it"
            tracker.say(
                f"{reason}: stopped after step {step}; started again, it goes on from {place}"
            )
            return False
    return True


def collect(job: Job, step: int) -> Rollout:
    """The judged groups of a step, of all ranks: those of one batch, or of as many as it takes."""
    draws = job.draws(step)
    while not draws.ended:
        draws.add(job.rollout(draws.next_prompts()))
    for note in draws.notes():
        job.tracker.say(f"step {step}: {note}")
    return draws.rollout()


def is_due(step: int, every: int) -> bool:
    """Whether something that happens every so many steps (0: never) happens at this one."""
    return every > 0 and step % every == 0


def run(config: Config, host: Host | None = None, command: str = "") -> None:
    """Trains one run from its configuration, on the engine of `host` where one is given.

    `command` is what model cards say of how it was started.
    """
    secure_streams()
    with Job(config, host, command) as job:
        with Stops(job.ranks, config.trainer.max_hours, job.tracker.say, job.started) as stops:
            finished = train(job, stops)
        if finished and job.ranks.is_first:
            job.tracker.say(f"done: {job.folder} (metrics.jsonl, {_draw(job.folder)})")


def _draw(folder: Path) -> str:
    """Draws the figures of a run and names them, or says why there are none: it is done anyway."""
    try:
        figures = (plot_training(folder), plot_timeline(folder))
    except Exception as error:
        return f"no figures: {error}; bandpo plot training {folder} draws them"
    return ", ".join(str(figure.relative_to(folder)) for figure in figures)
