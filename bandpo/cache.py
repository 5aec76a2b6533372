"""Where things that are made once are kept."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """$BANDPO_CACHE, else ~/.cache/bandpo."""
    return Path(os.environ.get("BANDPO_CACHE") or Path.home() / ".cache" / "bandpo")
