"""`bandpo table RECIPE`: plans, launches, collects and reports the runs of a table.

What is finished is not done again; `--plan` and `--report` start nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from bandpo.errors import UserError
from bandpo.planning.gpus import GPUS_PER_NODE, Cluster
from bandpo.tables.figures import accuracy_figures, entropy_figure
from bandpo.tables.forecast import (
    RowPlan,
    missing,
    plan_rows,
    plan_table,
    summary_lines,
    write_configs,
)
from bandpo.tables.launch import LOG, Launcher, Processes, write_slurm
from bandpo.tables.recipe import Recipe, RecipeFolder, find_recipe
from bandpo.tables.report import accuracy_blocks, training_blocks, write_numbers, write_report
from bandpo.tables.results import accuracy_lines, collect, training_lines
from bandpo.tables.runs import PlannedRun, Selection, plan_runs

ONLY_FOR_TABLES = ("plan", "report", "only", "cluster", "slurm", "hostfile", "at_once")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bandpo table", description=__doc__)
    parser.add_argument("recipe", help="a folder of ./recipes, or the path of one")
    parser.add_argument("overrides", nargs="*", help="hydra overrides for every run")
    parser.add_argument("--out", type=Path, help="folder of everything; outputs/tables/RECIPE")
    parser.add_argument("--smoke", action="store_true", help="a small version, to see it work")
    parser.add_argument("--plan", action="store_true", help="say what would run; start nothing")
    parser.add_argument("--report", action="store_true", help="of what is finished; start nothing")
    parser.add_argument(
        "--only", action="append", metavar="model=…,method=…,seed=…", help="narrows the table"
    )
    parser.add_argument("--cluster", metavar="8xH200", help="cards of a run; 0 for none")
    parser.add_argument(
        "--at-once", type=int, metavar="N", help="runs side by side on this machine"
    )
    parser.add_argument("--hostfile", type=Path, help="run over the hosts of deepspeed's hostfile")
    parser.add_argument("--slurm", type=Path, metavar="FOLDER", help="write a job array instead")
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs a recipe; 1 where a run failed, 2 for bad input and for runs that would not fit."""
    arguments = _parser().parse_intermixed_args(list(argv))
    found = find_recipe(arguments.recipe)
    name = f"{found.name}-smoke" if arguments.smoke else found.name
    out = arguments.out or Path("outputs/tables") / name
    if found.is_study:
        return _study(found, arguments, out)
    recipe = found.recipe()
    if arguments.smoke:
        recipe = recipe.smoked()
    return _table(found, recipe, arguments, out)


def _study(found: RecipeFolder, arguments: argparse.Namespace, out: Path) -> int:
    given = [f"--{flag.replace('_', '-')}" for flag in ONLY_FOR_TABLES if getattr(arguments, flag)]
    if given:
        raise UserError(f"{found.name} is a study of its own kind: it has no {', '.join(given)}")
    study = found.study(arguments.overrides)
    out.mkdir(parents=True, exist_ok=True)
    study.run(out, smoke=arguments.smoke)
    return 0


def _table(found: RecipeFolder, recipe: Recipe, arguments: argparse.Namespace, out: Path) -> int:
    text = arguments.cluster or recipe.cluster
    cluster = Cluster.of(text) if text and text != "0" else None
    selection = Selection.of(arguments.only or [], recipe)
    ranks = cluster.count if cluster else 1
    runs = plan_runs(recipe, out, selection, arguments.overrides, ranks)
    if not runs:
        raise UserError(f"--only {' '.join(arguments.only or [])} leaves no run of {found.name}")
    if not arguments.report:
        rows = plan_rows(recipe, runs, cluster)
        if arguments.plan:
            _plan(recipe, rows, runs, cluster, out)
        _refuse_misfits(rows, cluster)
        if arguments.plan:
            return 0
        waiting = [run for run in runs if not run.is_finished()]
        if arguments.slurm:
            return _slurm(arguments.slurm, found.name, rows, waiting)
        print(f"{len(runs)} runs, {len(runs) - len(waiting)} of them finished", flush=True)
        if waiting:
            _launcher(found, recipe, arguments)(waiting)
    return _report(found, recipe, runs, out)


def _refuse_misfits(rows: Sequence[RowPlan], cluster: Cluster | None) -> None:
    misfits: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.shortage:
            first = row.runs[0]
            misfits.setdefault((first.model, row.shortage), []).append(first.method)
    if misfits:
        raise UserError.join(
            f"these runs do not fit on {cluster or 'this machine'}:",
            [f"{model} ({', '.join(names)}): {why}" for (model, why), names in misfits.items()],
        )


def _plan(
    recipe: Recipe,
    rows: Sequence[RowPlan],
    runs: Sequence[PlannedRun],
    cluster: Cluster | None,
    out: Path,
) -> None:
    console = Console()
    # Piped into a file or a pager, the table is as wide as it needs to be.
    wide = Console(width=max(console.width, 200)) if not console.is_terminal else console
    wide.print(plan_table(recipe.title, rows, cluster))
    for line in summary_lines(rows, cluster):
        print(line)
    print(f"resolved configurations: {write_configs(out, runs)}")
    for item in missing(rows, cluster, out):
        print(f"missing here: {item}")


def _slurm(folder: Path, name: str, rows: Sequence[RowPlan], waiting: Sequence[PlannedRun]) -> int:
    if not waiting:
        print("every run is finished: there is nothing to submit")
        return 0
    hours = max((row.forecast.hours for row in rows if row.forecast), default=24.0)
    for path in write_slurm(folder, name, waiting, GPUS_PER_NODE, hours):
        print(f"wrote {path}")
    print(f"submit with: sbatch {folder / name}.sbatch; then bandpo table {name} --report")
    return 0


def _launcher(found: RecipeFolder, recipe: Recipe, arguments: argparse.Namespace) -> Launcher:
    """The recipe's own where it has one and nothing else was asked for."""
    if arguments.at_once is not None and arguments.at_once < 1:
        raise UserError(f"--at-once {arguments.at_once}: at least one run has to go")
    if arguments.hostfile and not arguments.hostfile.is_file():
        raise UserError(f"--hostfile {arguments.hostfile}: no such file")
    if recipe.launcher and not (arguments.at_once or arguments.hostfile):
        launcher: Launcher = found.built(recipe.launcher)
        return launcher
    return Processes(at_once=arguments.at_once or 1, hostfile=arguments.hostfile)


def _report(found: RecipeFolder, recipe: Recipe, runs: Sequence[PlannedRun], out: Path) -> int:
    """Tables and figures of what is finished; 1 where something is not."""
    unfinished = [run for run in runs if not run.is_finished()]
    if len(unfinished) < len(runs):
        cells = collect(runs)
        accuracies = accuracy_lines(cells, found.expected())
        trained = training_lines(cells)
        blocks = [*accuracy_blocks(accuracies), *training_blocks(trained)]
        entropy = entropy_figure(runs, out)
        figures = [*accuracy_figures(accuracies, out), *([entropy] if entropy else [])]
        written = write_report(out, recipe.title, blocks, figures)
        written.append(write_numbers(out, [*accuracies, *trained]))
        print(written[0].read_text(encoding="utf-8"))
        for path in (*written, *figures):
            print(f"wrote {path}")
    for run in unfinished:
        print(f"not finished: {run.label} ({run.folder / LOG})")
    return 1 if unfinished else 0
