"""The record of a run while it trains: metrics, samples, description and progress."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.table import Table
from torch.profiler import record_function

from bandpo.artifacts.display import Display, counted
from bandpo.artifacts.sample_tables import sample_table, send_table, takes_tables
from bandpo.config.keys import leaves
from bandpo.config.sections.trainer import TrackingConfig
from bandpo.disk.journal import Journal
from bandpo.environment import git_commit, hardware, versions
from bandpo.errors import UserError
from bandpo.ranks.collectives import Ranks
from bandpo.redaction import redacted
from bandpo.rollout.scoring import GroupSummary, ScoredGroup

# The metrics of a step's line, under short names.
SHOWN = {
    "reward": "reward/mean",
    "entropy": "policy/entropy",
    "clip": "clip/high_frac",
    "tok/s": "throughput/tokens_per_s",
}

# The phases of a step, in words for its user.
PHASES = {
    "rollout": "generating",
    "exchange": "distributing samples",
    "logprob": "scoring old tokens",
    "learn": "learning",
    "sync": "syncing weights",
}

logger = logging.getLogger(__name__)


class Clock:
    """Wall-clock seconds by phase: `with clock("rollout"): …` adds to `time/rollout_s`.

    `on_phase` receives the name of each phase that begins.
    """

    def __init__(self, on_phase: Callable[[str], None] = lambda phase: None) -> None:
        self._on_phase = on_phase
        self._seconds: dict[str, float] = {}
        self._start = time.perf_counter()

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        self._on_phase(phase)
        begun = time.perf_counter()
        try:
            with record_function(phase):  # under the phase's name in a profiler's trace
                yield
        finally:
            spent = time.perf_counter() - begun
            self._seconds[phase] = self._seconds.get(phase, 0.0) + spent

    def metrics(self, tokens: float) -> dict[str, float]:
        """`time/<phase>_s`, `time/step_s` since the clock was made, and tokens per second."""
        step = time.perf_counter() - self._start
        phases = {f"time/{phase}_s": seconds for phase, seconds in self._seconds.items()}
        return {**phases, "time/step_s": step, "throughput/tokens_per_s": tokens / step}


class Tracker:
    """Writes the files of one run; on all ranks but the first it does nothing.

    metrics.jsonl has one line per step, the first for the policy before training (step 0).
    accelerate's trackers (wandb, tensorboard, …) receive the same values, and samples where they
    show tables.
    """

    def __init__(
        self,
        folder: Path,
        tracking: TrackingConfig,
        console: Display,
        *,
        active: bool,
        steps: int,
        name: str = "",
        settings: Mapping[str, Any] | None = None,
        ids: Mapping[str, str] | None = None,
        after: int = 0,
    ) -> None:
        """A run resumes after the step `after`, under the `ids` that `ids()` returned before."""
        self.folder, self._active = folder, active
        self._trackers: list[Any] = []
        self._console, self._steps = console, steps
        self._journal = Journal(self.say)
        self._rows = tracking.samples
        if not active:
            return
        folder.mkdir(parents=True, exist_ok=True)
        settings = redacted(settings or {})
        text = yaml.safe_dump(settings, sort_keys=False)
        self._journal.write(folder / "config.yaml", text)
        self._trackers = [
            _tracker(kind, tracking.project, name, folder, (ids or {}).get(kind), after)
            for kind in tracking.trackers
        ]
        values = {k: _plain_value(v) for k, v in leaves(settings).items()}
        for tracker in self._trackers:
            tracker.store_init_configuration(values)
        console.step(after, steps, after)

    def say(self, text: str) -> None:
        """Prints a line for the user, on the first rank."""
        if self._active:
            self._console.say(text)

    def begin(self, step: int) -> Clock:
        """A clock of the step that begins, whose phases the console names."""
        self._console.step(step, self._steps, step - 1)
        return Clock(lambda phase: self.phase(PHASES[phase]))

    def phase(self, name: str) -> None:
        """Names on the console what the run does now."""
        self._console.phase(name)

    def describe(self, **facts: Any) -> None:
        """Writes run.json: git commit, versions, hardware and the facts given."""
        if self._active:
            description = {"git_commit": git_commit(), "versions": versions()}
            description |= {"hardware": hardware(), **facts}
            text = json.dumps(redacted(description), indent=2) + "\n"
            self._journal.write(self.folder / "run.json", text)

    def ids(self) -> dict[str, str]:
        """The trackers' ids of this run, with which a later part of it resumes."""
        return {t.name: str(_ID[t.name](t)) for t in self._trackers if t.name in _ID}

    def flush(self) -> None:
        """Raises OSError unless everything logged is on the disk."""
        self._journal.flush()

    def past(self) -> list[dict[str, float]]:
        """The metrics written so far, one mapping per step; empty on all ranks but the first."""
        path = self.folder / "metrics.jsonl"
        if not self._active or not path.exists():
            return []
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    def write(self, name: str, text: str) -> None:
        """Makes a file of the run's folder, in place of one that may be there."""
        if self._active:
            self._journal.write(self.folder / name, text)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends a line to metrics.jsonl and shows the step's headline metrics."""
        if not self._active:
            return
        line = json.dumps({"step": step, **metrics}, allow_nan=True)
        self._journal.append(self.folder / "metrics.jsonl", f"{line}\n")
        for tracker in self._trackers:
            try:
                tracker.log(dict(metrics), step=step)
            except OSError as error:
                self.say(f"{tracker.name} could not log step {step}: {error}")
        shown = {short: metrics[name] for short, name in SHOWN.items() if name in metrics}
        entries = [f"{name} {value:.4g}" for name, value in shown.items()]
        self._console.step(step, self._steps, step)
        self._console.entries(f"step {counted(step, self._steps)}", [*entries, *_scores(metrics)])

    def log_samples(
        self, step: int, groups: Sequence[GroupSummary], ranks: Ranks, shown: int = 4
    ) -> None:
        """Writes every completion of the step to samples/ and prints a few with their rewards.

        Collective: each rank writes the lines of its own groups, and the first gathers them.
        """
        own = {place: _lines(step, item.here) for place, item in enumerate(groups) if item.here}
        lines = {place: text for part in ranks.gather_to_first(own) for place, text in part.items()}
        if not self._active:
            return
        ordered = [lines[place] for place in range(len(groups))]
        self._journal.write(self.folder / "samples" / f"step_{step:06d}.jsonl", b"".join(ordered))
        self._console.print(_sample_table(step, groups[:shown], ordered))
        self._send_table(step, ordered)

    def _send_table(self, step: int, groups: Sequence[bytes]) -> None:
        """Sends samples to the trackers that show tables; no failure of theirs matters here."""
        trackers = [tracker for tracker in self._trackers if takes_tables(tracker)]
        if not trackers or self._rows == 0:
            return
        table = sample_table(groups, self._rows)
        for tracker in trackers:
            try:
                send_table(tracker, table, step)
            except Exception as error:  # of its library, over a model's output
                self.say(f"{tracker.name} could not log the samples of step {step}: {error}")

    def close(self) -> None:
        """Ends the trackers."""
        try:
            self._journal.flush()
        except OSError as error:
            self.say(f"the end of the record in {self.folder} is lost: {error}")
        for tracker in self._trackers:
            try:
                tracker.finish()
            except Exception as error:  # its service may not answer, which does the run no harm
                self.say(f"{tracker.name} could not be closed: {error}")


def _lines(step: int, item: ScoredGroup) -> bytes:
    """A group's completions, a line of JSON for each."""
    records = [_record(step, item, index) for index in range(len(item.scores))]
    return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records).encode()


def _record(step: int, item: ScoredGroup, index: int) -> dict[str, Any]:
    completion, score = item.group.completions[index], vars(item.scores[index])
    parts = {part.name: part.value for part in item.scores[index].parts}
    return {
        "step": step,
        "problem_id": item.group.problem.id,
        "prompt": item.group.prompt.text,
        "completion": completion.text,
        "answer": item.group.problem.answer,
        "tokens": len(completion.token_ids),
        "truncated": completion.truncated,
        "weight_version": completion.weight_version,
        # Seconds differ from run to run.
        **{name: value for name, value in score.items() if name not in ("seconds", "parts")},
        **({"parts": parts} if parts else {}),
    }


def _sample_table(step: int, groups: Sequence[GroupSummary], lines: Sequence[bytes]) -> Table:
    """The first of the `lines` of each group, with the group's mean reward."""
    table = Table(title=f"step {step}: one sample of {len(groups)} prompts", title_justify="left")
    for column in ("problem", "completion", "answer", "reward", "group"):
        table.add_column(column, overflow="fold")
    for item, text in zip(groups, lines, strict=False):
        mean = sum(item.rewards) / len(item.rewards)
        problem, first = item.prompt.problem, json.loads(text.partition(b"\n")[0])
        table.add_row(
            *(_plain(problem.problem, 80), _plain(first["completion"], 160)),
            *(_plain(problem.answer, 20), f"{item.rewards[0]:g}", f"{mean:.2f}"),
        )
    return table


def _plain(text: str, limit: int) -> Any:
    """The end of a model's output as plain text, without markup and control characters."""
    from rich.text import Text

    visible = "".join(c if c.isprintable() else " " for c in text[-limit:])
    return Text(("…" if len(text) > limit else "") + visible)


def headlines(metrics: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Benchmark → mean@n, and pass@32 where it was measured, of the metrics of a step."""
    found: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        prefix, _, metric = name.rpartition("/")
        if prefix.startswith("eval/") and (metric.startswith("mean@") or metric == "pass@32"):
            found.setdefault(prefix.removeprefix("eval/"), {})[metric] = value
    return found


def _scores(metrics: Mapping[str, float]) -> list[str]:
    """`amc23 mean@32 0.4125 pass@32 0.7` for every benchmark."""
    return [
        " ".join([benchmark, *(f"{metric} {value:.4g}" for metric, value in scores.items())])
        for benchmark, scores in headlines(metrics).items()
    ]


# A tracker's id of a run; a tracker without one begins a new run when this one resumes.
_ID: dict[str, Callable[[Any], str]] = {"wandb": lambda tracker: tracker.run.id}


def _tracker(
    kind: str, project: str, name: str, folder: Path, run_id: str | None, after: int
) -> Any:
    """A started tracker of accelerate's, which resumes the run `run_id` after a step."""
    from accelerate.state import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    if kind not in LOGGER_TYPE_TO_CLASS:
        known = ", ".join(sorted(map(str, LOGGER_TYPE_TO_CLASS)))
        raise UserError(f"tracking.trackers: no tracker {kind!r}; accelerate has {known}")
    PartialState(cpu=not torch.cuda.is_available())
    tracker = LOGGER_TYPE_TO_CLASS[kind]
    if kind == "wandb":
        resumed = {"id": run_id, "resume": "allow"} if run_id else {}
        made = tracker(project, name=name, dir=str(folder), **resumed)
    elif kind == "tensorboard":
        # Hides what a lost part of the run has logged.
        purge = {"purge_step": after + 1} if after else {}
        made = tracker(name, logging_dir=str(folder / kind), **purge)
    elif tracker.requires_logging_directory:
        made = tracker(name, logging_dir=str(folder / kind))
    else:
        made = tracker(project)
    if hasattr(made, "start"):
        made.start()
    return made


def _plain_value(value: Any) -> int | float | str:
    return value if isinstance(value, int | float | str) else str(value)
