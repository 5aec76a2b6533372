"""The settings of runs, and the few words in which runs differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from bandpo.config.keys import leaves
from bandpo.redaction import redacted
from bandpo.watch.files import opened, shown

LARGEST = 2**20  # bytes
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# The first to tell runs apart by; then what lies least deep.
_FIRST = ("method.name", "model.path", "seed", "learner.lr")
_ABOUT_THE_RUN_ITSELF = ("run.", "tracking.")
LONGEST_VALUE = 300


def settings_of(folder: Path) -> dict[str, Any]:
    """The run's config.yaml, flat and without secrets; empty where it cannot be read."""
    try:
        with opened(folder, "config.yaml") as file:
            tree = yaml.load(file.read(LARGEST), _LOADER)
        return leaves(redacted(tree)) if isinstance(tree, Mapping) else {}
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}


def differences(settings: Sequence[Mapping[str, Any]]) -> dict[str, list[str | None]]:
    """The keys in which runs differ, with each one's value, None where it has none."""
    keys = dict.fromkeys(key for one in settings for key in one)
    rows = {
        key: [_shown(one[key]) if key in one else None for one in settings]
        for key in sorted(keys, key=_place)
        if not key.startswith(_ABOUT_THE_RUN_ITSELF)
    }
    return {key: row for key, row in rows.items() if len(set(row)) > 1}


def telling(rows: Mapping[str, Sequence[str | None]]) -> list[str]:
    """The first keys that tell runs apart as far as all keys do."""
    chosen: list[str] = []
    parts: list[tuple[str | None, ...]] = [()] * max(map(len, rows.values()), default=0)
    for key, row in rows.items():
        finer = [(*part, value) for part, value in zip(parts, row, strict=True)]
        if len(set(finer)) > len(set(parts)):
            chosen.append(key)
            parts = finer
    return chosen


def _place(key: str) -> tuple[int, int, str]:
    first = _FIRST.index(key) if key in _FIRST else len(_FIRST)
    return first, key.count("."), key


def _shown(value: Any) -> str:
    return shown("null" if value is None else value, LONGEST_VALUE)
