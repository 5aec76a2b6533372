#!/usr/bin/env python3
"""Writes docs/configuration.md from the schema in bandpo/config.py; run it after a change there."""

from __future__ import annotations

import inspect
from pathlib import Path

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from bandpo.config import Config

HEADER = """# Configuration of `bandpo train`

Written from the schema in `bandpo/config.py` by `scripts/document_config.py`. A key without a
default gets its value from `configs/train.yaml` or a group (`data`, `method`, `rollout`,
`reward`). Override any key on the command line: `bandpo train learner.lr=1e-6`.
"""


def rows(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Markdown: a heading and a table a section."""
    table = ["| key | type | default | |", "|---|---|---|---|"]
    sections: list[str] = []
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
            about = (inspect.getdoc(annotation) or "").split("\n")[0]
            sections += ["", f"## {prefix}{name}", "", about, "", *rows(annotation, f"{name}.")]
            continue
        kind = annotation.__name__ if inspect.isclass(annotation) else str(annotation)
        kind = kind.replace("typing.", "").replace("|", "\\|")
        default = "" if field.default is PydanticUndefined else f"`{field.default!r}`"
        description = (field.description or "").replace("|", "\\|")
        table.append(f"| `{prefix}{name}` | `{kind}` | {default} | {description} |")
    return (table if len(table) > 2 else []) + sections


def document() -> str:
    """The whole page."""
    return "\n".join([HEADER, *rows(Config)]) + "\n"


if __name__ == "__main__":
    target = Path(__file__).resolve().parents[1] / "docs" / "configuration.md"
    target.write_text(document())
    print(f"wrote {target.name}")
