"""The study: methods against canonical clipping over reaches, rarities and bounds."""

from __future__ import annotations

import dataclasses
import datetime
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from bandpo.environment import git_commit, hardware, versions
from bandpo.errors import UserError
from bandpo.evaluation.intervals import mean_of
from bandpo.loss import Bounds, LossDiagnostics
from bandpo.methods.method import Method, load_methods
from tabular_study.bandit import Bandit, State
from tabular_study.methods import ablations, applicable
from tabular_study.report import draw_phase, draw_settings, draw_turns, write_table
from tabular_study.theory import turning_point
from tabular_study.training import Course, Update, train

T = TypeVar("T")

logger = logging.getLogger(__name__)
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
MEASURES = ("entropy", "coverage")
RESAMPLES = 1000
# Fewer seeds than this say too little of their own spread for an interval by resampling.
LEAST_RESAMPLED = 30


@dataclass(frozen=True)
class Setting:
    """One bandit trained with one update, by every method."""

    bandit: Bandit
    update: Update
    seeds: int = 300
    rollouts: int = 100

    def small(self) -> Setting:
        """A small version that shows that everything works."""
        return dataclasses.replace(self, seeds=8, rollouts=3)


@dataclass(frozen=True)
class Sweep:
    """Bandits × updates × methods over reaches; `methods` as on the command line.

    With `stop`, a policy trains until all have learned, `rollouts` at most.
    """

    title: str
    bandits: Mapping[str, Bandit]
    updates: Mapping[str, Update]
    reaches: Sequence[float]
    methods: str
    seeds: int = 200
    rollouts: int = 400
    stop: bool = True

    def small(self) -> Sweep:
        """A small version that shows that everything works."""
        ends = [self.reaches[0], self.reaches[-1]]
        return dataclasses.replace(self, reaches=ends, seeds=8, rollouts=3)


@dataclass(frozen=True)
class Study:
    """Where probability-aware bounds keep entropy and coverage, and where they do not.

    methods    of `settings` and `phase`; `all` or a list
    baseline   the method that the others are compared with, seed by seed
    accuracy   entropy and coverage are compared where each policy first is this accurate
    ablations  further bounds for `settings`, by name
    settings   compared after a fixed number of rollouts too
    phase      over reaches and rarities, for every method
    turns      over reaches, for variants of one thing each
    """

    settings: Mapping[str, Setting]
    phase: Sweep
    turns: Mapping[str, Sweep]
    ablations: Mapping[str, Bounds] = field(default_factory=dict)
    methods: str = "all"
    baseline: str = "grpo"
    accuracy: float = 0.99
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.accuracy < 1:
            raise UserError(f"accuracy={self.accuracy}: must lie between 0 and 1")

    def run(self, folder: Path, smoke: bool = False) -> None:
        """Writes results.json, table.md and three figures into the folder."""
        study = self._small() if smoke else self
        folder.mkdir(parents=True, exist_ok=True)
        # Tensors are small: a second thread would cost more than it does.
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            results = study.results()
        finally:
            torch.set_num_threads(threads)
        results["command"] = "bandpo table tabular" + (" --smoke" if smoke else "")
        text = json.dumps(_rounded(results)) + "\n"
        (folder / "results.json").write_text(text, encoding="utf-8")
        write_table(results, folder / "table.md")
        draw_settings(results, folder / "settings.png")
        draw_phase(results, folder / "phase.png")
        draw_turns(results, folder / "turns.png")
        print(f"written to {folder}: table.md, results.json, settings.png, phase.png, turns.png")

    def described(self) -> dict[str, Any]:
        """The study's settings as plain values, as in results.json."""
        settings: dict[str, Any] = _rounded(self)
        return settings

    def _small(self) -> Study:
        return dataclasses.replace(
            self,
            settings={name: setting.small() for name, setting in self.settings.items()},
            phase=self.phase.small(),
            turns={name: sweep.small() for name, sweep in self.turns.items()},
        )

    def results(self) -> dict[str, Any]:
        """Every number of the study, and the settings, versions and hardware behind them."""
        start, cpu = time.perf_counter(), time.process_time()
        (baseline,) = load_methods(self.baseline)
        asked = sorted(load_methods(self.methods), key=lambda method: method.name)
        others = [method for method in asked if method.name != self.baseline]
        methods, left_out = applicable([baseline, *others], self.phase_group_size)
        every = [*methods, *ablations(self.ablations)]
        settings = {name: self._setting(setting, every) for name, setting in _timed(self.settings)}
        sweeps = {
            name: self._sweep(sweep, baseline, methods)
            for name, sweep in _timed({"phase": self.phase, **self.turns})
        }
        return {
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "seconds": time.perf_counter() - start,
            "cpu_seconds": time.process_time() - cpu,
            "git_commit": git_commit(),
            "hardware": hardware(),
            "versions": versions(),
            "study": self.described(),
            "baseline": self.baseline,
            "accuracy": self.accuracy,
            "left_out": left_out,
            "settings": settings,
            "phase": sweeps.pop("phase"),
            "turns": sweeps,
        }

    @property
    def phase_group_size(self) -> int:
        """G of the phase diagram."""
        return next(iter(self.phase.updates.values())).group_size

    def _setting(self, setting: Setting, methods: Sequence[Method]) -> dict[str, Any]:
        """One row per method against the first, at equal accuracy and after the last rollout."""
        rows, base = {}, None
        for method in methods:
            diagnostics = LossDiagnostics()
            course = train(
                setting.bandit,
                method,
                setting.update,
                self.seed,
                setting.seeds,
                setting.rollouts,
                self.accuracy,
                observe=[diagnostics.update],
            )
            base = base or course
            rows[method.name] = {
                **self._compared(course, base),
                **_reach_metrics(diagnostics),
            }
        return {"description": _described(setting), "methods": rows}

    def _sweep(self, sweep: Sweep, baseline: Method, every: Sequence[Method]) -> dict[str, Any]:
        """Curves over the reaches, each with its turning points; `every`: the methods of `all`."""
        asked = every if sweep.methods == "all" else load_methods(sweep.methods)
        methods = [method for method in asked if method.name != self.baseline]
        curves = []
        for labels, bandit, update in _combinations(sweep):
            rows: dict[str, list[dict[str, Any]]] = {method.name: [] for method in methods}
            changes: dict[str, list[Tensor]] = {method.name: [] for method in methods}
            for reach in sweep.reaches:
                here = dataclasses.replace(update, reach=reach)
                base = self._train(sweep, bandit, baseline, here)
                for method in methods:
                    course = self._train(sweep, bandit, method, here)
                    rows[method.name].append(self._compared(course, base))
                    changes[method.name].append(self._changes(course, base))
            for method in methods:
                curves.append(
                    {
                        **labels,
                        "method": method.name,
                        "incumbent": _incumbent(bandit),
                        "inner": update.inner,
                        "group_size": update.group_size,
                        "turns": _turns(sweep.reaches, torch.stack(changes[method.name])),
                        "points": rows[method.name],
                    }
                )
        return {
            "title": sweep.title,
            "reaches": list(sweep.reaches),
            "fixed": not sweep.stop,
            "curves": curves,
        }

    def _train(self, sweep: Sweep, bandit: Bandit, method: Method, update: Update) -> Course:
        return train(
            bandit,
            method,
            update,
            self.seed,
            sweep.seeds,
            sweep.rollouts,
            self.accuracy,
            sweep.stop,
        )

    def _compared(self, course: Course, base: Course) -> dict[str, Any]:
        """At equal accuracy, and where both have as many rollouts after the last one too."""
        when = course.when(self.accuracy).double()
        found = {
            "learned": (course.states.accuracy >= self.accuracy).any(0).double().mean().item(),
            "rollouts": when.mean().item(),
            "at_accuracy": _paired(course.at(self.accuracy), base.at(self.accuracy)),
        }
        if len(course.states.accuracy) == len(base.states.accuracy):
            found["last"] = _paired(course.last(), base.last())
        return found

    def _changes(self, course: Course, base: Course) -> Tensor:
        """The measures whose turning points `_turns` finds, per seed, [2, S]."""
        at, last = course.at(self.accuracy), course.last()
        base_at, base_last = base.at(self.accuracy), base.last()
        return torch.stack([at.coverage - base_at.coverage, last.entropy - base_last.entropy])


def _timed(jobs: Mapping[str, T]) -> Iterator[tuple[str, T]]:
    """Runs the jobs in turn; prints how long each took."""
    for name, job in jobs.items():
        start = time.perf_counter()
        yield name, job
        logger.info("%s: %.0f s", name, time.perf_counter() - start)


def _combinations(sweep: Sweep) -> Iterator[tuple[dict[str, str], Bandit, Update]]:
    for bandit_name, bandit in sweep.bandits.items():
        for update_name, update in sweep.updates.items():
            yield {"bandit": bandit_name, "update": update_name}, bandit, update


def _incumbent(bandit: Bandit) -> float | None:
    """The geometric mean of a lone first correct action's range; None where there is no such."""
    first = bandit.correct[0]
    return (first.low * first.high) ** 0.5 if first.count == 1 else None


def _described(setting: Setting) -> str:
    update = setting.update
    correct = ", ".join(f"{g.count} at p = {g.low:g}–{g.high:g}" for g in setting.bandit.correct)
    return (
        f"{type(update.optimizer).__name__}, learning rate {update.lr:.3g}, {update.inner} inner "
        f"updates, G = {update.group_size} (reach {update.reach:g}); K = {setting.bandit.actions}, "
        f"correct: {correct}; {setting.seeds} seeds"
    )


def _paired(state: State, base: State) -> dict[str, Any]:
    """For each measure its mean and quantiles over seeds, and those of the paired change.

    The change has Student's interval; its ends are null where its error is unknown.
    """
    values = {name: getattr(state, name).double() for name in MEASURES}
    found: dict[str, Any] = {"accuracy": state.accuracy.double().mean().item()}
    for name, value in values.items():
        change = value - getattr(base, name).double()
        estimate = mean_of(change.numpy()).interval
        found[name] = {
            "mean": value.mean().item(),
            "quantiles": _quantiles(value),
            "change": estimate.value,
            "low": estimate.low,
            "high": estimate.high,
            "change_quantiles": _quantiles(change),
            "more": (change > 0).double().mean().item(),
            "less": (change < 0).double().mean().item(),
        }
    return found


def _quantiles(values: Tensor) -> list[float]:
    return values.quantile(torch.tensor(QUANTILES, dtype=values.dtype)).tolist()


def _turns(reaches: Sequence[float], changes: Tensor) -> dict[str, Any]:
    """Turning points of the changes [R, 2, S]: of the mean and the median over seeds.

    With the 95% interval of the mean's over resampled seeds, null where these are too few.
    """
    generator = torch.Generator().manual_seed(0)
    seeds = changes.shape[-1]
    drawn = torch.randint(seeds, (RESAMPLES, seeds), generator=generator)
    # How often each seed is drawn: a resampled mean is a product with these.
    weights = torch.zeros(RESAMPLES, seeds, dtype=torch.float64)
    weights.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
    found = {}
    for index, name in enumerate(("coverage_at_accuracy", "entropy_last")):
        change = changes[:, index].double()
        resampled = turning_point(reaches, weights @ change.T / seeds)
        known = seeds >= LEAST_RESAMPLED
        low, high = map(_finite, _ends(resampled)) if known else (None, None)
        found[name] = {
            "mean": _finite(turning_point(reaches, change.mean(-1)).item()),
            "low": low,
            "high": high,
            "median": _finite(turning_point(reaches, change.median(-1).values).item()),
        }
    return found


def _ends(values: Tensor) -> list[float]:
    ends = torch.tensor([0.025, 0.975], dtype=values.dtype)
    return values.quantile(ends, interpolation="nearest").tolist()  # some are infinite


def _finite(reach: float) -> float | str:
    """A turning point for JSON: a word where it lies outside the sweep."""
    return "below" if reach == 0 else "above" if not reach < float("inf") else reach


def _reach_metrics(diagnostics: LossDiagnostics) -> dict[str, float]:
    return {name: x for name, x in diagnostics.metrics().items() if name.startswith("reach/")}


def _rounded(value: Any) -> Any:
    """Four digits for floats, plain containers for all else."""
    if dataclasses.is_dataclass(value):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return _rounded({"class": type(value).__name__, **fields})
    match value:
        case float():
            return float(f"{value:.4g}")
        case Mapping():
            return {str(key): _rounded(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_rounded(inner) for inner in value]
        case str() | int() | None:
            return value
        case _:
            return str(value)
