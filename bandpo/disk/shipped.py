"""Files that ship with the code and are not Python: configs, recipes, scripts."""

from __future__ import annotations

from pathlib import Path

from bandpo.errors import UserError


def shipped(folder: str) -> Path:
    """A folder that ships: inside the package in an installed wheel, beside it in a checkout.

    Raises UserError where it is missing.
    """
    package = Path(__file__).resolve().parents[1]
    for place in (package / folder, package.parent / folder):
        if place.is_dir():
            return place
    raise UserError(f"no {folder} folder beside {package}: the installation is incomplete")
