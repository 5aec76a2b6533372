"""The disk below a folder that may not exist yet."""

from __future__ import annotations

import shutil
from pathlib import Path


def nearest_existing(path: Path) -> Path:
    """The path itself, or the nearest one above it that exists."""
    path = path.absolute()
    return next(place for place in (path, *path.parents) if place.exists())


def free_gib(folder: Path) -> float:
    """GiB that are free where the folder is, or will be."""
    return shutil.disk_usage(nearest_existing(folder)).free / 2**30
