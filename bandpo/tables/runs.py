"""The runs of a table: planned from its recipe, recognised on disk by their configuration."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bandpo.artifacts.folder import read_metrics
from bandpo.config.composition import compose_seeds, defaults
from bandpo.config.identity import config_hash
from bandpo.config.schema import Config
from bandpo.config.sections.trainer import EvalConfig
from bandpo.errors import UserError
from bandpo.tables.recipe import Recipe, override_of, seed_list


@dataclass(frozen=True)
class PlannedRun:
    """A cell of a table and a seed: one call of `bandpo train`."""

    model: str
    method: str
    seed: int
    overrides: tuple[str, ...]
    config: Config
    ranks: int = 1

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.config.run.dir)

    @property
    def label(self) -> str:
        """Its name in messages."""
        return f"{self.model}, {self.method}, seed {self.seed}"

    def is_finished(self) -> bool:
        """Whether the folder holds this very configuration, trained and evaluated to its end."""
        try:
            stored = yaml.safe_load((self.folder / "config.yaml").read_text(encoding="utf-8"))
            last = read_metrics(self.folder)[-1]["step"]
            same = table_hash(stored) == table_hash(self.config)
        except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError, UserError):
            return False  # not there, or cut off by a kill: it is resumed
        evaluated = self.summary.exists() or not self.config.eval.benchmarks
        return same and evaluated and last == self.config.trainer.steps

    @property
    def summary(self) -> Path:
        """The evaluation after the last step, which tables report."""
        return self.folder / "eval" / f"{self.config.trainer.steps:06d}" / "summary.json"


def table_hash(settings: Config | Mapping[str, Any]) -> str:
    """A hash of everything that determines a run's part of a table, as eight hex digits.

    They cover the settings that determine the training (`bandpo.config.identity.config_hash`:
    names, paths and trackers are not among them), the number of steps, and the evaluation. Accepts
    the content of a config.yaml as well.
    """
    tree = settings.model_dump(mode="json") if isinstance(settings, Config) else settings
    evaluation = {**defaults(EvalConfig), **tree["eval"]}
    found = [config_hash(tree), tree["trainer"]["steps"], evaluation]
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:8]


def by_cell(runs: Sequence[PlannedRun]) -> dict[tuple[str, str], list[PlannedRun]]:
    """The runs of each (model, method), in the given order."""
    cells: dict[tuple[str, str], list[PlannedRun]] = {}
    for run in runs:
        cells.setdefault((run.model, run.method), []).append(run)
    return cells


# --------------------------------------------------------------------------- planning


@dataclass(frozen=True)
class Selection:
    """The runs that `--only model=…,method=…,seed=…` selects; empty: all."""

    models: frozenset[str] = frozenset()
    methods: frozenset[str] = frozenset()
    seeds: frozenset[int] = frozenset()

    @classmethod
    def of(cls, words: Sequence[str], recipe: Recipe) -> Selection:
        """Reads `model=a,method=b,method=c`; raises UserError for what the recipe does not have."""
        chosen: dict[str, set[str]] = {"model": set(), "method": set(), "seed": set()}
        problems = []
        for word in filter(None, ",".join(words).split(",")):
            key, _, value = word.partition("=")
            if key not in chosen or not value:
                problems.append(f"{word!r} is not model=…, method=… or seed=…")
            else:
                chosen[key].add(value)
        for key, known in (("model", list(recipe.models)), ("method", list(recipe.methods))):
            for name in sorted(chosen[key].difference(known)):
                problems.append(f"no {key} {name}; the recipe has {', '.join(known)}")
        all_seeds = {seed for method in recipe.methods for seed in seeds_of(recipe, method)}
        for name in sorted(chosen["seed"] - set(map(str, all_seeds))):
            problems.append(f"no seed {name}; the recipe has {sorted(all_seeds)}")
        if problems:
            raise UserError.join("--only:", problems)
        seeds = frozenset(map(int, chosen["seed"]))
        return cls(frozenset(chosen["model"]), frozenset(chosen["method"]), seeds)

    def __call__(self, model: str, method: str, seed: int) -> bool:
        """Whether a run is selected."""
        return (
            (not self.models or model in self.models)
            and (not self.methods or method in self.methods)
            and (not self.seeds or seed in self.seeds)
        )


def seeds_of(recipe: Recipe, method: str) -> tuple[int, ...]:
    """A method's own seeds, or the recipe's."""
    own = recipe.methods[method].seeds
    return seed_list(recipe.seeds if own is None else own)


def plan_runs(
    recipe: Recipe,
    folder: Path,
    selection: Selection | None = None,
    extra: Sequence[str] = (),
    ranks: int = 1,
    gpu: bool | None = None,
) -> list[PlannedRun]:
    """Every run of a table with its resolved configuration, below `folder`.

    `gpu` says whether they will have GPUs, None: whether this machine has. Raises UserError with
    the problems of every row whose configuration is not valid; a problem that several rows share is
    reported once, with the first.
    """
    runs: list[PlannedRun] = []
    problems: dict[str, str] = {}
    for model, method in ((m, x) for m in recipe.models for x in recipe.methods):
        seeds = [
            seed
            for seed in seeds_of(recipe, method)
            if selection is None or selection(model, method, seed)
        ]
        overrides = _overrides(recipe, model, method, extra)
        try:
            configs = compose_seeds("train", overrides, Config, seeds, ranks, gpu)
        except UserError as error:
            problems.setdefault(str(error), f"{model}, {method}")
            continue
        for seed, config in zip(seeds, configs, strict=True):
            runs.append(_placed(folder, model, method, seed, overrides, config, ranks))
    if problems:
        raise UserError.join(
            "not every run can be configured:",
            [f"{row}: {text}".replace("\n", "\n  ") for text, row in problems.items()],
        )
    return runs


def _overrides(recipe: Recipe, model: str, method: str, extra: Sequence[str]) -> list[str]:
    """A cell's overrides; the method's win over the model's, and those over the recipe's."""
    chosen: dict[str, Any] = {"method": method}
    if recipe.protocol:
        chosen["+protocol"] = recipe.protocol
    for row in (recipe, recipe.models[model], recipe.methods[method]):
        chosen |= row.overrides
    return [*(override_of(key, value) for key, value in chosen.items()), *extra]


def _placed(
    folder: Path,
    model: str,
    method: str,
    seed: int,
    overrides: Sequence[str],
    config: Config,
    ranks: int,
) -> PlannedRun:
    """A run in a folder that no other configuration shares."""
    name = f"{method}-seed{seed}-{table_hash(config)}"
    place = {"name": f"{model}-{name}", "dir": str(folder / model / name)}
    run = config.run.model_copy(update=place)
    where = (override_of("run.name", run.name), override_of("run.dir", run.dir))
    return PlannedRun(
        model=model,
        method=method,
        seed=seed,
        overrides=(*overrides, f"seed={seed}", *where),
        config=config.model_copy(update={"run": run}),
        ranks=ranks,
    )
