"""Smaller versions of a table, each with what it takes and the command that plans it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from rich import box
from rich.table import Table

from bandpo.config.schema import Config
from bandpo.config.sections.learner import LoraConfig
from bandpo.planning.fit import replaced
from bandpo.planning.gpus import Cluster
from bandpo.tables.forecast import Bill, Group, replanned
from bandpo.tables.recipe import Recipe

STEPS = 100
"""Steps in which most of what a table shows begins to show."""
LORA = LoraConfig(rank=16, alpha=16, targets="all-linear")
LORA_LR = 1e-5


@dataclass(frozen=True)
class Cut:
    """A version of the table: its name, the arguments of `bandpo table` that make it, its bill."""

    name: str
    arguments: tuple[str, ...]
    bill: Bill


@dataclass(frozen=True)
class Asked:
    """The arguments of `bandpo table`: `--only` words, and others."""

    only: Sequence[str] = ()
    others: Sequence[str] = ()

    def narrowed(self, only: Mapping[str, object], *overrides: str) -> tuple[str, ...]:
        """The arguments with one model or seed instead of those asked for, and overrides."""
        words = [word for word in ",".join(self.only).split(",") if word]
        kept = [word for word in words if word.partition("=")[0] not in only]
        chosen = ",".join([*kept, *(f"{key}={value}" for key, value in only.items())])
        return (*(("--only", chosen) if chosen else ()), *self.others, *overrides)


def cuts(recipe: Recipe, groups: Sequence[Group], cluster: Cluster, asked: Asked) -> list[Cut]:
    """One model, one seed, fewer steps, adapters, and all of these at once.

    Only those that are smaller than the table of these groups are among them.
    """
    cheapest = min(groups, key=lambda g: g.first.forecast.hours if g.first.forecast else 0.0)
    model, seed = cheapest.first.runs[0].model, cheapest.first.runs[0].seed
    one_model = [group for group in groups if group.first.runs[0].model == model]
    steps = min(STEPS, *(group.first.runs[0].config.trainer.steps for group in groups))
    fewer = f"trainer.steps={steps}"
    lora = (f"learner.lora.rank={LORA.rank}", f"learner.lr={LORA_LR:g}")

    def shorter(config: Config) -> Config:
        return replaced(config, "trainer.steps", steps)

    def adapted(config: Config) -> Config:
        return replaced(config, "learner.lora", LORA)

    def bill(groups: Sequence[Group], change: Callable[[Config], Config]) -> Bill:
        return Bill.of([replanned(recipe, group, cluster, change) for group in groups])

    choices = [
        Cut("one model, the cheapest", asked.narrowed({"model": model}), Bill.of(one_model)),
        Cut("one seed", asked.narrowed({"seed": seed}), Bill.of(_of_seed(groups, seed))),
        Cut("fewer steps", asked.narrowed({}, fewer), bill(groups, shorter)),
        Cut(f"LoRA of rank {LORA.rank}", asked.narrowed({}, *lora), bill(groups, adapted)),
        Cut(
            "all of these",
            asked.narrowed({"model": model, "seed": seed}, fewer, *lora),
            bill(_of_seed(one_model, seed), lambda config: adapted(shorter(config))),
        ),
    ]
    whole = Bill.of(groups)
    return [cut for cut in choices if _is_less(cut.bill, whole)]


def _is_less(bill: Bill, whole: Bill) -> bool:
    fewer_hours = (bill.hours or 0.0) < 0.99 * (whole.hours or 0.0)
    return fewer_hours or bill.disk.gib < 0.99 * whole.disk.gib


def _of_seed(groups: Sequence[Group], seed: int) -> list[Group]:
    """The groups with the runs of one seed alone."""
    found = []
    for group in groups:
        rows = [
            replace(row, runs=tuple(run for run in row.runs if run.seed == seed))
            for row in group.rows
        ]
        if rows := [row for row in rows if row.runs]:
            found.append(Group(tuple(rows)))
    return found


def cuts_table(name: str, found: Sequence[Cut], cluster: Cluster) -> Iterator[Table | str]:
    """The cuts with hours, GPU-hours and disk, and the command of each."""
    if not found:
        return
    table = Table(title="Smaller versions", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("")
    for column in ("runs", "hours", "GPU-hours", "GiB of disk", "without optimizer state"):
        table.add_column(column, justify="right")
    for cut in found:
        hours = cut.bill.hours or 0.0
        disk = cut.bill.disk
        table.add_row(
            cut.name,
            str(cut.bill.runs),
            *(f"{value:,.0f}" for value in (hours, hours * cluster.count)),
            *(f"{value:,.0f}" for value in (disk.gib, disk.weights_gib)),
        )
    yield table
    for cut in found:
        yield f"  {cut.name}: bandpo table {name} --plan {' '.join(cut.arguments)}"
