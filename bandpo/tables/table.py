"""A table: the runs of a recipe, planned, launched and reported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from rich.console import Console

from bandpo.errors import UserError
from bandpo.planning.gpus import GPUS_PER_NODE, Cluster
from bandpo.tables.cuts import Asked, cuts, cuts_table
from bandpo.tables.figures import accuracy_figures, entropy_figure
from bandpo.tables.forecast import (
    RowPlan,
    grouped,
    missing,
    plan_rows,
    plan_tables,
    summary_lines,
    write_configs,
)
from bandpo.tables.launch import LOG, Launcher
from bandpo.tables.recipe import Recipe, RecipeFolder
from bandpo.tables.report import accuracy_blocks, training_blocks, write_numbers, write_report
from bandpo.tables.results import accuracy_lines, collect, training_lines
from bandpo.tables.runs import PlannedRun, Selection, plan_runs
from bandpo.tables.slurm import write_slurm

PAGE = 100
"""Columns of what is printed where there is no terminal."""


@dataclass(frozen=True)
class Table:
    """The runs of a recipe in the folder `out`, on a cluster or on this machine's CPU."""

    found: RecipeFolder
    recipe: Recipe
    runs: Sequence[PlannedRun]
    out: Path
    cluster: Cluster | None = None
    asked: Asked = field(default_factory=Asked)

    @classmethod
    def of(
        cls,
        found: RecipeFolder,
        recipe: Recipe,
        out: Path,
        only: Sequence[str] = (),
        overrides: Sequence[str] = (),
        cluster: str | None = None,
    ) -> Table:
        """A recipe's table with `overrides` for every run, narrowed by `only` (`Selection.of`).

        `cluster` takes the place of the recipe's; `0` is none. Raises UserError where a run cannot
        be configured or none is left.
        """
        text = cluster or recipe.cluster
        chosen = Cluster.of(text) if text and text != "0" else None
        ranks = chosen.count if chosen else 1
        gpu = True if chosen else None
        runs = plan_runs(recipe, out, Selection.of(only, recipe), overrides, ranks, gpu)
        if not runs:
            raise UserError(f"--only {' '.join(only)} leaves no run of {found.name}")
        asked = Asked(only, (*overrides, *(("--cluster", cluster) if cluster else ())))
        return cls(found, recipe, runs, out, chosen, asked)

    @cached_property
    def rows(self) -> list[RowPlan]:
        """Memory, time and fit of every cell."""
        return plan_rows(self.recipe, self.runs, self.cluster)

    def unfinished(self) -> list[PlannedRun]:
        """The runs that are still to be done."""
        return [run for run in self.runs if not run.is_finished()]

    def print_plan(self) -> None:
        """Prints what the table takes, smaller versions, every row, and what is missing here.

        Writes the configurations of all runs.
        """
        groups, cluster = grouped(self.rows), self.cluster
        console = Console()
        # In a file or a pager the tables are as wide as they need to be.
        wide = console if console.is_terminal else Console(width=PAGE)
        print(self.recipe.title)
        if self.recipe.notice:
            print(self.recipe.notice)
        for line in summary_lines(groups, cluster):
            print(line)
        parts = [*plan_tables(groups, cluster)]
        if cluster:
            smaller = cuts(self.recipe, groups, cluster, self.asked)
            parts = [*cuts_table(self.found.name, smaller, cluster), *parts]
        for part in parts:
            wide.print(part, highlight=False, soft_wrap=isinstance(part, str))
        print(f"resolved configurations: {write_configs(self.out, self.runs)}")
        for item in missing(self.rows, self.cluster, self.out):
            print(f"missing here: {item}")

    def require_fit(self) -> None:
        """Raises UserError that names every cell whose runs do not fit."""
        misfits: dict[tuple[str, str], list[str]] = {}
        for row in self.rows:
            if row.shortage:
                first = row.runs[0]
                misfits.setdefault((first.model, row.shortage), []).append(first.method)
        if misfits:
            raise UserError.join(
                f"these runs do not fit on {self.cluster or 'this machine'}:",
                [f"{model} ({', '.join(names)}): {why}" for (model, why), names in misfits.items()],
            )

    def submit(self, folder: Path) -> None:
        """Writes a SLURM job array of the unfinished runs; prints how to submit it."""
        unfinished, name = self.unfinished(), self.found.name
        if not unfinished:
            print("every run is finished: there is nothing to submit")
            return
        hours = max((row.forecast.hours for row in self.rows if row.forecast), default=24.0)
        for path in write_slurm(folder, name, unfinished, GPUS_PER_NODE, hours):
            print(f"wrote {path}")
        print(f"submit with: sbatch {folder / name}.sbatch; then bandpo table {name} --report")

    def launch(self, launcher: Launcher) -> None:
        """Has the launcher run what is unfinished: the first seed of every row, then the second.

        So a table that is cut short compares rows of equally many seeds.
        """
        unfinished = sorted(self.unfinished(), key=lambda run: run.seed)
        finished = len(self.runs) - len(unfinished)
        print(f"{len(self.runs)} runs, {finished} of them finished", flush=True)
        if unfinished and self.recipe.notice:
            print(self.recipe.notice, flush=True)
        if unfinished:
            launcher(unfinished)

    def report(self) -> bool:
        """Writes and prints tables and figures of the finished runs; whether all runs are."""
        unfinished = self.unfinished()
        if len(unfinished) < len(self.runs):
            self._write_report()
        for run in unfinished:
            print(f"not finished: {run.label} ({run.folder / LOG})")
        return not unfinished

    def _write_report(self) -> None:
        cells = collect(self.runs)
        accuracies = accuracy_lines(cells, self.found.expected())
        trained = training_lines(cells)
        blocks = [*accuracy_blocks(accuracies), *training_blocks(trained)]
        entropy = entropy_figure(self.runs, self.out)
        figures = [*accuracy_figures(accuracies, self.out), *([entropy] if entropy else [])]
        written = write_report(self.out, self.recipe.title, blocks, figures)
        written.append(write_numbers(self.out, [*accuracies, *trained]))
        print(written[0].read_text(encoding="utf-8"))
        for path in (*written, *figures):
            print(f"wrote {path}")
