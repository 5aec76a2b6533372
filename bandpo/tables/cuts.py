"""Smaller versions of a table, each with what it takes and the command that plans it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table

from bandpo.config.schema import Config, LoraConfig
from bandpo.planning.fit import replaced
from bandpo.planning.gpus import Cluster
from bandpo.tables.forecast import Bill, Group, RowPlan, replanned
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


def cuts(recipe: Recipe, groups: Sequence[Group], cluster: Cluster) -> list[Cut]:
    """One model, one seed, fewer steps, adapters, and all of these at once.

    Only those that are smaller than the table of these groups are among them.
    """
    cheapest = min(groups, key=lambda g: g.first.forecast.hours if g.first.forecast else 0.0)
    model, seed = cheapest.first.runs[0].model, cheapest.first.runs[0].seed
    whole = Bill.of(groups)
    steps = f"trainer.steps={STEPS}"
    lora = (f"learner.lora.rank={LORA.rank}", f"learner.lr={LORA_LR:g}")

    one_model = [group for group in groups if group.first.runs[0].model == model]
    choices = [
        Cut("one model, the cheapest", ("--only", f"model={model}"), Bill.of(one_model)),
        Cut("one seed", ("--only", f"seed={seed}"), Bill.of(_of_seed(groups, seed))),
        Cut("fewer steps", (steps,), _bill(recipe, groups, cluster, _shorter)),
        Cut(f"LoRA of rank {LORA.rank}", lora, _bill(recipe, groups, cluster, _adapted)),
        Cut(
            "all of these",
            ("--only", f"model={model},seed={seed}", steps, *lora),
            _bill(recipe, _of_seed(one_model, seed), cluster, lambda c: _adapted(_shorter(c))),
        ),
    ]
    return [cut for cut in choices if _is_less(cut.bill, whole)]


def _is_less(bill: Bill, whole: Bill) -> bool:
    hours = (bill.hours or 0.0) < 0.99 * (whole.hours or 0.0)
    return hours or bill.checkpoints.gib < 0.99 * whole.checkpoints.gib


def _of_seed(groups: Sequence[Group], seed: int) -> list[Group]:
    """The groups with the runs of one seed alone."""
    return [
        Group(
            tuple(
                RowPlan(
                    tuple(run for run in row.runs if run.seed == seed),
                    row.memory,
                    row.shortage,
                    row.forecast,
                )
                for row in group.rows
            )
        )
        for group in groups
    ]


def _shorter(config: Config) -> Config:
    return replaced(config, "trainer.steps", min(STEPS, config.trainer.steps))


def _adapted(config: Config) -> Config:
    return replaced(config, "learner.lora", LORA)


def _bill(
    recipe: Recipe,
    groups: Sequence[Group],
    cluster: Cluster,
    change: Callable[[Config], Config],
) -> Bill:
    return Bill.of([replanned(recipe, group, cluster, change) for group in groups])


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
        disk = cut.bill.checkpoints
        table.add_row(
            cut.name,
            str(cut.bill.runs),
            *(f"{value:,.0f}" for value in (hours, hours * cluster.count)),
            *(f"{value:,.0f}" for value in (disk.gib, disk.weights_gib)),
        )
    yield table
    for cut in found:
        yield f"  {cut.name}: bandpo table {name} --plan {' '.join(cut.arguments)}"
