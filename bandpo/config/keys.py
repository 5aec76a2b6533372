"""A configuration's tree as keys with dots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def every_key(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key and its value, sections included: `learner`, `learner.lr`, …"""
    for name, value in tree.items():
        yield f"{prefix}{name}", value
        if isinstance(value, Mapping):
            yield from every_key(value, f"{prefix}{name}.")


def leaves(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that are no sections, `{"learner.lr": 1e-6, …}`; an empty section counts as one."""
    return {
        key: value for key, value in every_key(tree) if not (isinstance(value, Mapping) and value)
    }
