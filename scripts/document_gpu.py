#!/usr/bin/env python3
"""Writes docs/gpu.md: what has run on which GPU, from benchmarks/results/gpu-*.json."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from document_tested import TESTS, features, outcomes, suites_in  # noqa: E402

from benchmarks.gpu.check import Check  # noqa: E402
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
    return page.format(table=table(CHECKS, found), not_run=not_run(CHECKS, found), details=sections)


def not_run(checks: Iterable[Check], records: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: checks without a result, features without a check, tests beside both."""
    without = [check for check in checks if not outcomes(check.name)]
    lines = ["Checks that no card has a result of:", ""]
    lines += [f"- `{check.name}`: {_why(check, records)}" for check in without]
    lines += ["", "Features of [tested.md](tested.md) that no check uses:", ""]
    listed = [line.feature for group in features().values() for line in group if line.gpu == ()]
    lines += [f"- {feature}" for feature in listed]
    files = [path.relative_to(TESTS).as_posix() for path in sorted(TESTS.rglob("test_*.py"))]
    beside = [file for file in files if any("gpu" in suites for suites in suites_in(file).values())]
    lines += ["", "Tests marked `gpu` whose results are not recorded (`pytest -m gpu`):", ""]
    # test_gpu.py is the checks themselves.
    lines += [f"- `tests/{file}`" for file in beside if file != "gpu/test_gpu.py"]
    return "\n".join(lines)


def _why(check: Check, records: Mapping[str, Mapping[str, Any]]) -> str:
    """The recorded reasons, by card."""
    reasons = [
        f"{record['checks'][check.name]['reason']} (on {card})"
        for card, record in records.items()
        if check.name in record["checks"]
    ]
    return "; ".join(reasons) or "not tried"


if __name__ == "__main__":
    target = ROOT / "docs" / "gpu.md"
    target.write_text(document(), encoding="utf-8")
    print(f"wrote {target.relative_to(ROOT)}")
