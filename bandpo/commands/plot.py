"""`bandpo plot bounds | training | timeline`: the trust regions and the curves of a run."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from bandpo.artifacts.figures import plot_timeline, plot_training
from bandpo.disk.space import refusals_in_words
from bandpo.errors import UserError
from bandpo.methods.bounds_figure import plot_bounds
from bandpo.methods.method import ALL, load_methods

FEW = "grpo,clip_higher,dcpo,band_kl,band_tv,band_chi2"


def main(argv: Sequence[str]) -> int:
    """Runs one of the subcommands."""
    parser = argparse.ArgumentParser(prog="bandpo plot", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    bounds = commands.add_parser("bounds", help="ratio bounds and feasible probability change")
    bounds.add_argument(
        "--methods",
        default=FEW,
        help=f"such as grpo,band_kl:delta=0.03, or {ALL} (default: {FEW})",
    )
    bounds.add_argument("--configs", type=Path, help="folder with methods of your own in method/")
    bounds.add_argument("--out", type=Path, default=Path("bounds.png"), help="png, pdf or svg")
    bounds.add_argument(
        "--entropy", type=float, default=0.5, help="nats, for radii that follow the entropy"
    )
    bounds.set_defaults(run=_bounds)

    for name, plot in (("training", plot_training), ("timeline", plot_timeline)):
        figure = commands.add_parser(name, help=f"plots/{name}.png of a run")
        figure.add_argument("run_folder", metavar="run", type=Path, help="folder of the run")
        figure.set_defaults(run=partial(_of_run, plot))

    arguments = parser.parse_args(list(argv))
    print(f"written to {arguments.run(arguments)}")
    return 0


def _of_run(plot: Callable[[Path], Path], arguments: argparse.Namespace) -> Path:
    with refusals_in_words(f"{arguments.run_folder}/plots"):
        return plot(arguments.run_folder)


def _bounds(arguments: argparse.Namespace) -> Path:
    if not arguments.entropy >= 0:
        raise UserError(f"--entropy {arguments.entropy}: must not be negative")
    methods = load_methods(arguments.methods, arguments.configs)
    try:
        return plot_bounds(methods, arguments.out, arguments.entropy)
    except (OSError, ValueError) as error:  # matplotlib: an unknown format, an unwritable place
        raise UserError(f"--out {arguments.out}: {error}") from None
