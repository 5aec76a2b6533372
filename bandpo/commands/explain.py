"""`bandpo explain "logp=-3.2 adv=1 ratio=1.6"`: one token under every method."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from bandpo.methods.explain import explained, keys, parse_token
from bandpo.methods.method import ALL, load_methods


def main(argv: Sequence[str]) -> int:
    """Prints the token and one row per method."""
    parser = argparse.ArgumentParser(
        prog="bandpo explain",
        description=f"{__doc__}\n\nA token is described by\n{keys()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("token", nargs="+", help='such as "logp=-3.2 adv=1 ratio=1.6"')
    parser.add_argument(
        "--methods", default=ALL, help="such as grpo,band_kl:delta=0.03; all (the default)"
    )
    parser.add_argument("--configs", type=Path, help="folder with methods of your own in method/")
    arguments = parser.parse_args(list(argv))
    token = parse_token(" ".join(arguments.token))
    console = Console(highlight=False)
    for part in explained(load_methods(arguments.methods, arguments.configs), token):
        console.print(part)
    return 0
