"""Where benchmarks keep their figures, and the facts written beside them."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bandpo.environment import hardware, versions

FOLDER = Path(__file__).parent / "results"


def keep(name: str, figures: Mapping[str, Any]) -> Path:
    """Writes results/<name>.json: the figures with date, machine and versions."""
    path = FOLDER / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    facts = {
        "date": datetime.date.today().isoformat(),
        "machine": hardware(),
        "versions": versions(),
    }
    path.write_text(json.dumps({**facts, **figures}, indent=2) + "\n")
    print(f"written to {path}")
    return path
