"""Whether the objects that `_target_` names can be built, and the reason where they cannot."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from hydra._internal.utils import _locate  # get_object logs the error besides
from hydra.utils import instantiate

from bandpo.errors import UserError, did_you_mean, place_of


def why_not_built(target: Mapping[str, Any]) -> str | None:
    """The reason why hydra cannot build a `_target_` tree; None if it can."""
    try:
        instantiate(target)
    except Exception as error:  # shown to the user, whose own class may have raised it
        return reason(error)
    return None


def why_not_imported(name: str) -> str | None:
    """The reason why a dotted name cannot be imported; None if it can."""
    try:
        _locate(name)
    except Exception as error:  # shown to the user, whose own module may have raised it
        return reason(error)
    return None


def reason(error: Exception) -> str:
    """The text of an error of hydra's, or of what caused it, on one line."""
    cause = error if isinstance(error, ImportError) else error.__cause__ or error
    if isinstance(cause, UserError):
        return " ".join(str(cause).split())
    first = str(cause).splitlines()[0] if str(cause) else type(cause).__name__
    if not isinstance(cause, ImportError):
        return first
    return f"{first.rstrip(':')}: {_of_import(cause.__cause__ or cause)}"


def _of_import(error: BaseException) -> str:
    """The reason of an import's failure: of the module's own, or that it was not found."""
    if not isinstance(error, ModuleNotFoundError):
        return f"{type(error).__name__}: {error}{place_of(error)}"
    parent, _, name = (error.name or "").rpartition(".")
    if parent in sys.modules:
        return f"{parent} has no {name}{did_you_mean(name, dir(sys.modules[parent]))}"
    return (
        f"{error}; Python finds a module of your own where PYTHONPATH names its folder: "
        "PYTHONPATH=. bandpo …"
    )
