"""The cost of a table: memory, time and fit of every run, and what this machine lacks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.table import Table

from bandpo.config.schema import Config, longest_sequence
from bandpo.data.benchmarks import benchmark_spec, local_names
from bandpo.disk.space import free_gib
from bandpo.environment import hardware
from bandpo.model.architecture import shape_of
from bandpo.model.source import embedded_recipe
from bandpo.planning.forecast import Forecast, forecast
from bandpo.planning.gpus import Cluster
from bandpo.planning.memory import Memory, checkpoint_gib, machine_memory
from bandpo.tables.recipe import Recipe
from bandpo.tables.runs import PlannedRun, by_cell

# The columns of a GPU's memory in a table of plans, and the parts that they show.
_PARTS = {
    "weights": "weights",
    "grad.": "gradients",
    "optim.": "optimizer",
    "activ.": "activations",
    "logits": "logits",
    "ref.": "reference",
    "engine": "engine weights",
    "KV": "KV cache",
}


@dataclass(frozen=True)
class RowPlan:
    """A cell of the table with all its seeds."""

    runs: tuple[PlannedRun, ...]
    memory: Memory
    shortage: str | None
    forecast: Forecast | None

    @property
    def hours(self) -> float:
        """All seeds one after another; 0 without a cost model."""
        return self.forecast.hours * len(self.runs) if self.forecast else 0.0


def plan_rows(recipe: Recipe, runs: Sequence[PlannedRun], cluster: Cluster | None) -> list[RowPlan]:
    """Memory, time and fit of every cell; on this machine's memory where there is no cluster."""
    rows = []
    for (model, _), seeds in by_cell(runs).items():
        config = seeds[0].config
        shape = shape_of(config.model)
        if cluster:
            mean_tokens = recipe.models[model].mean_tokens
            found = forecast(config, shape, cluster, mean_tokens)
            rows.append(RowPlan(tuple(seeds), found.memory, found.shortage, found))
        else:
            memory = machine_memory(config, shape, 1, hardware()["memory_gib"])
            rows.append(
                RowPlan(tuple(seeds), memory, memory.shortage(longest_sequence(config)), None)
            )
    return rows


def plan_table(title: str, rows: Sequence[RowPlan], cluster: Cluster | None) -> Table:
    """One line per cell: seeds, GPUs, GiB per GPU by part against its memory, tokens, time."""
    where = f"{cluster}, one run at a time" if cluster else "this machine's CPU"
    table = Table(title=f"{title}\n{where}; memory in GiB per GPU", title_justify="left")
    for name in ("model", "method"):
        table.add_column(name, overflow="fold")
    columns = ("seeds", "GPUs", *_PARTS, "peak", "usable", "tokens", "s/step", "h/run")
    for name in columns:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*_cells(row, cluster), style="red" if row.shortage else None)
    return table


def _cells(row: RowPlan, cluster: Cluster | None) -> list[str]:
    first, memory = row.runs[0], row.memory
    parts = {**memory.learner, **memory.engine}
    gib = [f"{parts[part]:.1f}" if part in parts else "–" for part in _PARTS.values()]
    time = ["–", "–", "–"]
    if row.forecast:
        tokens = row.forecast.work.tokens * first.config.trainer.steps
        time = [f"{tokens / 1e9:.1f} G", f"{row.forecast.step:.0f}", f"{row.forecast.hours:.0f}"]
    return [
        *(first.model, first.method, str(len(row.runs)), str(cluster.count if cluster else 0)),
        *(*gib, f"{memory.peak:.1f}", f"{memory.usable:.0f}", *time),
    ]


def summary_lines(rows: Sequence[RowPlan], cluster: Cluster | None) -> Iterator[str]:
    """The number of runs, of finished runs, and the time that the rest takes."""
    runs = [run for row in rows for run in row.runs]
    seeds = sorted({run.seed for run in runs})
    done = sum(run.is_finished() for run in runs)
    yield (
        f"{len(runs)} runs: {len(rows)} rows × seeds {', '.join(map(str, seeds))}; "
        f"{done} of them finished"
    )
    if cluster:
        left = sum(row.hours * _unfinished(row) for row in rows)
        yield (
            f"about {left:,.0f} hours on {cluster}, {left * cluster.count:,.0f} GPU-hours, for "
            "the unfinished runs; docs/cost-model.md has the error of this estimate"
        )


def _unfinished(row: RowPlan) -> float:
    return sum(not run.is_finished() for run in row.runs) / len(row.runs)


def write_configs(folder: Path, runs: Sequence[PlannedRun]) -> Path:
    """Every run's resolved configuration as `plan/<run>.yaml`."""
    target = folder / "plan"
    target.mkdir(parents=True, exist_ok=True)
    for run in runs:
        path = target / f"{run.config.run.name}.yaml"
        text = yaml.safe_dump(run.config.model_dump(mode="json"), sort_keys=False)
        path.write_text(text, encoding="utf-8")
    return target


# --------------------------------------------------------------------------- this machine


def missing(rows: Sequence[RowPlan], cluster: Cluster | None, folder: Path) -> list[str]:
    """GPUs, packages, hub repositories and disk space that the runs need and this machine lacks."""
    runs = [run for row in rows for run in row.runs]
    gpus = torch.cuda.device_count()
    found = []
    if cluster and gpus < cluster.count:
        found.append(f"{cluster.count} GPUs for a run, of which {gpus} are here")
    found += [f"the package {name}" for name in _packages(runs) if find_spec(name) is None]
    cached = _cached_repositories()
    for kind, name in sorted({repo for run in runs for repo in _repositories(run.config)}):
        if (kind, name) not in cached:
            found.append(f"the {kind} {name} (not in the hub's cache; downloaded when needed)")
    needed = sum(checkpoint_gib(run.config, shape_of(run.config.model)) for run in runs)
    if (free := free_gib(folder)) < needed:
        found.append(f"{needed:,.0f} GiB of disk for checkpoints, of which {free:,.0f} are free")
    return found


def _packages(runs: Sequence[PlannedRun]) -> list[str]:
    engines = {str(run.config.rollout.engine["_target_"]) for run in runs}
    return ["deepspeed", *(["vllm"] if any("vllm" in engine for engine in engines) else [])]


def _repositories(config: Config) -> Iterator[tuple[str, str]]:
    """(model | dataset, hub id) of everything that a run loads from the hub."""
    path = config.model.path
    if embedded_recipe(path) is None and not Path(path).expanduser().exists():
        yield "model", path
    yield from (("dataset", name) for name in _hub_ids(config.data.train))
    root = Path(config.data.root) if config.data.root else None
    for spec in config.eval.benchmarks:
        benchmark = benchmark_spec(spec)
        local = root and any((root / name).is_file() for name in local_names(benchmark))
        hub = getattr(benchmark.source, "hub", None)
        if hub and not local:
            yield "dataset", hub


def _hub_ids(source: Any) -> Iterator[str]:
    """The `hub` entries anywhere in a data source's mapping."""
    if isinstance(source, Mapping):
        if isinstance(source.get("hub"), str):
            yield source["hub"]
        for value in source.values():
            yield from _hub_ids(value)
    elif isinstance(source, list | tuple):
        for value in source:
            yield from _hub_ids(value)


def _cached_repositories() -> set[tuple[str, str]]:
    from huggingface_hub import CacheNotFound, scan_cache_dir

    try:
        return {(repo.repo_type, repo.repo_id) for repo in scan_cache_dir().repos}
    except CacheNotFound:
        return set()
