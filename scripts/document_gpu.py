#!/usr/bin/env python3
"""Writes docs/gpu.md: what has run on which GPU, from benchmarks/results/gpu-*.json."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.gpu.checks import CHECKS  # noqa: E402
from benchmarks.gpu.results import FOLDER, details, table  # noqa: E402

PAGE = Path(__file__).with_name("gpu.md.template")


def document() -> str:
    """The whole page."""
    files = sorted(FOLDER.glob("gpu-*.json"))
    records = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    found: Mapping[str, Mapping[str, Any]] = {record["card"]: record for record in records}
    page = PAGE.read_text(encoding="utf-8")
    sections = "\n".join(details(card, record) for card, record in found.items())
    return page.format(table=table(CHECKS, found), details=sections)


if __name__ == "__main__":
    target = ROOT / "docs" / "gpu.md"
    target.write_text(document(), encoding="utf-8")
    print(f"wrote {target.relative_to(ROOT)}")
