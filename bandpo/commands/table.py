"""`bandpo table RECIPE`: plans, launches, collects and reports the runs of a table.

Finished runs are not repeated; `--plan` and `--report` start nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from bandpo.disk.space import require_folder
from bandpo.errors import UserError
from bandpo.tables.launch import Launcher, Processes
from bandpo.tables.recipe import Recipe, RecipeFolder, find_recipe
from bandpo.tables.table import Table

ONLY_FOR_TABLES = ("plan", "report", "only", "cluster", "slurm", "hostfile", "at_once")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bandpo table", description=__doc__)
    parser.add_argument(
        "recipe", help="a folder of ./recipes, the path of one, or a recipe that ships"
    )
    parser.add_argument("overrides", nargs="*", help="hydra overrides for every run")
    parser.add_argument("--out", type=Path, help="folder of the results; outputs/tables/RECIPE")
    parser.add_argument("--smoke", action="store_true", help="a small version, to see it work")
    parser.add_argument("--plan", action="store_true", help="print what would run; start nothing")
    parser.add_argument("--report", action="store_true", help="report finished runs; start nothing")
    parser.add_argument(
        "--only", action="append", metavar="model=…,method=…,seed=…", help="narrows the table"
    )
    parser.add_argument("--cluster", metavar="8xH200", help="GPUs of a run; 0 for none")
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
    if not (arguments.plan or arguments.report):
        require_folder(out, "--out ")
    if found.is_study:
        return _study(found, arguments, out)
    recipe = found.recipe()
    if arguments.smoke:
        recipe = recipe.smoked()
    only = arguments.only or []
    table = Table.of(found, recipe, out, only, arguments.overrides, arguments.cluster)
    if not arguments.report:
        if arguments.plan:
            table.print_plan()
        table.require_fit()
        if arguments.plan:
            return 0
        if arguments.slurm:
            table.submit(arguments.slurm)
            return 0
        table.launch(_launcher(found, recipe, arguments))
    return 0 if table.report() else 1


def _study(found: RecipeFolder, arguments: argparse.Namespace, out: Path) -> int:
    given = [f"--{flag.replace('_', '-')}" for flag in ONLY_FOR_TABLES if getattr(arguments, flag)]
    if given:
        raise UserError(f"{found.name} is a study of its own kind: it has no {', '.join(given)}")
    study = found.study(arguments.overrides)
    study.run(out, smoke=arguments.smoke)
    return 0


def _launcher(found: RecipeFolder, recipe: Recipe, arguments: argparse.Namespace) -> Launcher:
    """The recipe's own where it has one and the arguments ask for no other."""
    if arguments.at_once is not None and arguments.at_once < 1:
        raise UserError(f"--at-once {arguments.at_once}: must be at least one")
    if arguments.hostfile and not arguments.hostfile.is_file():
        raise UserError(f"--hostfile {arguments.hostfile}: no such file")
    if recipe.launcher and not (arguments.at_once or arguments.hostfile):
        launcher: Launcher = found.built(recipe.launcher)
        return launcher
    return Processes(at_once=arguments.at_once or 1, hostfile=arguments.hostfile)
