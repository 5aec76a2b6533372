"""`bandpo table RECIPE`: plans, launches, collects and reports the runs of a table."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from bandpo.errors import UserError
from bandpo.tables.recipe import RecipeFolder, find_recipe
from bandpo.tables.runs import Selection, plan_runs


def main(argv: Sequence[str]) -> int:
    """Runs a recipe; what is finished is not done again."""
    parser = argparse.ArgumentParser(prog="bandpo table", description=__doc__)
    parser.add_argument("recipe", help="a folder of ./recipes, or the path of one")
    parser.add_argument("overrides", nargs="*", help="hydra overrides for every run")
    parser.add_argument("--out", type=Path, help="folder of everything; outputs/tables/RECIPE")
    parser.add_argument("--smoke", action="store_true", help="a small version, to see it work")
    parser.add_argument("--plan", action="store_true", help="say what would run; start nothing")
    parser.add_argument(
        "--only", action="append", default=[], metavar="model=…,method=…,seed=…", help="narrows"
    )
    arguments = parser.parse_intermixed_args(list(argv))
    found = find_recipe(arguments.recipe)
    name = f"{found.name}-smoke" if arguments.smoke else found.name
    out = arguments.out or Path("outputs/tables") / name
    if found.is_study:
        return _study(found, arguments, out)
    recipe = found.recipe()
    runs = plan_runs(recipe, out, Selection.of(arguments.only, recipe), arguments.overrides)
    if not arguments.plan:
        raise UserError("runs cannot be launched yet: --plan lists them")
    for run in runs:
        print(shlex.join(["bandpo", "train", *run.overrides]))
    return 0


def _study(found: RecipeFolder, arguments: argparse.Namespace, out: Path) -> int:
    study = found.study(arguments.overrides)
    out.mkdir(parents=True, exist_ok=True)
    study.run(out, smoke=arguments.smoke)
    return 0
