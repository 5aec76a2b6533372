"""`bandpo train -m a=1,2 b=x,y`: every combination, one process after another.

Hydra's own launcher would run them in one process, where a second vLLM and a second DeepSpeed
cannot start; its sweep syntax is kept.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from signal import SIGINT, SIGTERM

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from rich.console import Console
from rich.table import Table

from bandpo.artifacts.folder import read_metrics
from bandpo.config.composition import compose
from bandpo.config.overrides import in_shell, is_understood, meant
from bandpo.config.schema import Config
from bandpo.errors import UserError, listed
from bandpo.tables.launch import one_rank, signals_to

FLAGS = ("-m", "--multirun")
IN_EVERY_NAME = ("method", "seed")  # run.name has them: grpo-seed0
SHOWN = re.compile(r"reward/mean|eval/[^/]+/mean@\d+")


@dataclass(frozen=True)
class SweepRun:
    """One combination: its overrides and the run's folder."""

    overrides: list[str]
    folder: Path

    def __str__(self) -> str:
        return f"bandpo train {' '.join(self.overrides)}"


def sweep_of(words: Sequence[str]) -> list[SweepRun]:
    """The runs of a sweep; empty without `-m`.

    A run has the name that `bandpo train` gives it by itself; where those are not distinct, the
    values that vary are added. Raises UserError with the problems of every combination.
    """
    if not any(flag in words for flag in FLAGS):
        return []
    words = [word for word in words if word not in FLAGS]
    try:
        parsed = OverridesParser.create().parse_overrides(words)
        (runs,) = BasicSweeper.split_arguments(parsed, None)
    except HydraException as error:
        raise _misread(words, error) from None
    varied = [override.get_key_element() for override in parsed if override.is_sweep_override()]
    configs = _composed(runs)
    if _shared(config.run.dir for config in configs):
        _refuse_shared(words, varied, len(runs))
        runs = [[*r, _name(r, c, varied)] for r, c in zip(runs, configs, strict=True)]
        configs = _composed(runs)
    if shared := _shared(config.run.dir for config in configs):
        raise UserError(f"several runs of this sweep would share a folder: {listed(shared)}")
    return [SweepRun(r, Path(c.run.dir)) for r, c in zip(runs, configs, strict=True)]


def _composed(runs: Sequence[Sequence[str]]) -> list[Config]:
    """The configuration of every run; raises UserError with the problems of all."""
    configs: list[Config] = []
    problems: dict[str, list[str]] = defaultdict(list)
    first: UserError | None = None
    for run in runs:
        try:
            configs.append(compose("train", run, Config))
        except UserError as error:
            first = first or error
            for problem in str(error).split("\n  - ")[1:]:
                problems[problem].append(" ".join(run))
    if first is None:
        return configs
    found = UserError.join(
        f"none of the {len(runs)} runs of this sweep is started, since these could not be trained:",
        [f"{problem}\n      in {listed(where, 3, '; ')}" for problem, where in problems.items()],
    )
    found.instead = first.instead
    raise found


def _shared(folders: Iterable[str]) -> list[str]:
    return [folder for folder, uses in Counter(folders).items() if uses > 1]


def _refuse_shared(words: Sequence[str], varied: Sequence[str], runs: int) -> None:
    """Raises UserError where the user has named one folder for all runs."""
    for word in words:
        key = word.split("=")[0]
        if key in ("run.dir", "run.name") and key not in varied:
            raise UserError(
                f"{word}: the {runs} runs of this sweep would share one folder; omit {key}, or "
                f"make it vary, as in {key}='x-${{seed}}'"
            )


def _misread(words: Sequence[str], error: HydraException) -> UserError:
    """The error for words that hydra does not understand, as `compose` raises it."""
    texts = {word: meant(word) for word in words if not is_understood(word)}
    found = UserError.join(str(error), [f"{w}: {in_shell(t)}" for w, t in texts.items() if t])
    found.instead = {word: text for word, text in texts.items() if text}
    return found


def _name(run: Sequence[str], config: Config, varied: Sequence[str]) -> str:
    """`run.name=<its own name>-<key>_<value>…`, of the keys that vary and that it does not have."""
    pairs = [override.partition("=") for override in run]
    added = [
        f"{key.rpartition('.')[2]}_{value}"
        for key, _, value in pairs
        if key in varied and key not in IN_EVERY_NAME
    ]
    return f"run.name={re.sub(r'[^A-Za-z0-9._-]+', '_', '-'.join([config.run.name, *added]))}"


def launch(sweep: Sequence[SweepRun]) -> int:
    """Trains the runs in turn, also after a failure; returns the first non-zero exit code.

    SIGINT and SIGTERM are passed on to the run that is training, which saves and ends; no other
    is started. A table of all runs closes it.
    """
    codes: list[int] = []
    for index, run in enumerate(sweep, 1):
        print(f"run {index} of {len(sweep)}: {run}", flush=True)
        code, is_stopped = _train(run.overrides)
        codes.append(code)
        if code:
            print(f"failed with exit code {code}: {run}", file=sys.stderr)
        if is_stopped:
            print("the sweep has stopped: the same command resumes it", file=sys.stderr)
            break
    Console().print(_summary(sweep, codes))
    return next((code for code in codes if code), 0)


def _summary(sweep: Sequence[SweepRun], codes: Sequence[int]) -> Table:
    """A row per run: its folder, its exit code, and the last values of its metrics."""
    last = [_last_metrics(run.folder) for run in sweep]
    names = dict.fromkeys(name for metrics in last for name in metrics)
    table = Table(title="sweep", title_justify="left")
    table.add_column("run", overflow="fold")
    for name in ("exit code", *names):
        table.add_column(name, justify="right", overflow="fold")
    ended = [*map(str, codes), *["not started"] * (len(sweep) - len(codes))]
    for run, code, metrics in zip(sweep, ended, last, strict=True):
        shown = [f"{metrics[name]:.4g}" if name in metrics else "" for name in names]
        table.add_row(str(run.folder), code, *shown)
    return table


def _last_metrics(folder: Path) -> dict[str, float]:
    """`step`, the mean reward and every benchmark's mean, each as reported last."""
    try:
        lines = read_metrics(folder)
    except UserError:  # it has not reported any
        return {}
    found = {name: value for line in lines for name, value in line.items() if SHOWN.fullmatch(name)}
    return {"step": lines[-1]["step"], **found}


def _train(overrides: Sequence[str]) -> tuple[int, bool]:
    """The exit code of a run, and whether it was asked to stop."""
    received: list[int] = []
    # A group of its own: Ctrl-C in a terminal reaches the run once, through us.
    process = subprocess.Popen(one_rank(overrides), process_group=0)

    def pass_on(number: int, frame: object) -> None:
        received.append(number)
        process.send_signal(number)

    with signals_to(pass_on, SIGINT, SIGTERM):
        return process.wait(), bool(received)
