#!/usr/bin/env python3
"""Writes docs/configuration.md from bandpo/config/schema.py; run it after a change there."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from bandpo.config.schema import Config

HEADER = """# Configuration of `bandpo train`

Written from the schema in `bandpo/config/schema.py` and its sections by
`scripts/document_config.py`. A key without a default gets its value from `configs/train.yaml` or a
group (`data`, `method`, `rollout`, `reward`, `policy`). Override any key on the command line:
`bandpo train learner.lr=1e-6`. A list of one needs no brackets: `eval.benchmarks=math500`.

`configs/train.yaml` suits models of 100 M parameters and more: learning rate 1e-6, Adam's usual
betas, bfloat16 on a GPU and float32 on a CPU, activations recomputed where memory asks for it,
prompts and completions of up to 1,024 tokens, no evaluation unless named. Without `model.path`,
`bandpo train` trains the embedded policy, whose settings (`configs/policy/embedded.yaml`) lie over
these, and says so. `policy=embedded` asks for them with another model, which earlier versions gave
them unasked.

Every shipped method has, besides its own parameters, `method.kl_coef` (the reference KL),
`method.entropy_coef` (an entropy bonus: coefficient × entropy of the policy being trained, at the
sampling temperature, is taken off every token's loss; 0 is none) and `method.entropy_floor` (nats;
null is none): after a step whose `policy/entropy` is below the floor the coefficient rises by
`method.entropy_coef_step` (1e-4), up to `method.entropy_coef_max` (5e-3), and falls again above it,
where the bonus is that of `method.entropy_coef`. The defaults of both are Skywork-OR1's.

A run that resumes from a checkpoint refuses changed settings, except those marked under
*on resume*: `free` ones change neither rollouts nor weights, `rounding` ones change them only by
floating-point rounding, so that the run is no longer bitwise the same ([resume.md](resume.md)).
"""
SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
NUMBERS = (int, float)
SHOWN = {"harmless": "free", "rounding": "rounding", None: ""}


def on_resume(field: FieldInfo, section: str | None) -> str:
    """The effect of a change to the field, or to keys of the mapping that it holds."""
    extra = field.json_schema_extra
    mark = section or (extra.get("resume") if isinstance(extra, dict) else None)
    if isinstance(mark, dict):
        return ", ".join(f"`{key}` {SHOWN[effect]}" for key, effect in mark.items())
    return SHOWN[mark]


def rows(model: type[BaseModel], prefix: str = "", mark: str | None = None) -> list[str]:
    """Markdown: one heading and one table per section; `mark` is the section's own."""
    table = ["| key | values | default | on resume | |", "|---|---|---|---|---|"]
    sections: list[str] = []
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
            inner = (field.json_schema_extra or {}).get("resume", mark)
            about = (inspect.getdoc(annotation) or "").split("\n")[0]
            sections += ["", f"## {prefix}{name}", "", about, ""]
            sections += rows(annotation, f"{prefix}{name}.", inner)
            continue
        default = "" if field.default is PydanticUndefined else f"`{written(field.default)}`"
        effect = on_resume(field, mark)
        description = (field.description or "").replace("|", "\\|")
        values = kind(annotation, field.metadata)
        table.append(f"| `{prefix}{name}` | {values} | {default} | {effect} | {description} |")
    return (table if len(table) > 2 else []) + sections


def kind(annotation: Any, limits: Sequence[Any] = ()) -> str:
    """The values that a type takes, with the range of a number."""
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return kind(inside[0], inside[1].metadata)
    if origin is Literal:
        return ", ".join(f"`{str(v).lower() if isinstance(v, bool) else v}`" for v in inside)
    if origin in (Union, UnionType):
        return " or ".join(kind(part, limits if part in NUMBERS else ()) for part in inside)
    if origin is tuple:
        if inside[-1] is not ...:
            return f"[{', '.join(map(kind, inside))}]"
        return f"list of {kind(inside[0])}"
    if origin is dict or annotation is Any:
        return "mapping"
    if annotation is NoneType:
        return "`null`"
    bounds = [
        f"{sign} {getattr(limit, name)}"
        for limit in limits
        for name, sign in SIGNS.items()
        if annotation in NUMBERS and hasattr(limit, name)
    ]
    return " ".join([f"`{annotation.__name__}`", ", ".join(bounds)]).rstrip()


def written(value: Any) -> str:
    """A value as it is written in YAML and on the command line."""
    return value if isinstance(value, str) and value else json.dumps(value)


def document() -> str:
    """The whole page."""
    return "\n".join([HEADER, *rows(Config)]) + "\n"


if __name__ == "__main__":
    target = Path(__file__).resolve().parents[1] / "docs" / "configuration.md"
    target.write_text(document())
    print(f"wrote {target.name}")
