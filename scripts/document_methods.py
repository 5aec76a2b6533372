#!/usr/bin/env python3
"""Writes docs/methods.md and its pictures from configs/method; run it after a change there."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from hydra.utils import instantiate

from bandpo.advantage import group_advantages
from bandpo.config.composition import config_dir
from bandpo.loss import Capped, DualClip, PolicyLoss
from bandpo.methods.method import ALL, FAMILIES, Method, load_methods
from bandpo.methods.needs import needs
from bandpo.methods.weight_picture import picture

DOCS = Path(__file__).resolve().parents[1] / "docs"
HEADER = """# Methods

Written from `configs/method/` and the docstrings of `bandpo.loss` by `scripts/document_methods.py`.

`bandpo train method=<name>` trains with one, `bandpo explain` shows each on a token of yours,
`bandpo replay` on the tokens of a run ([explain.md](explain.md)); `bandpo table baselines` compares
them. A constant is a key: `method=band_kl method.delta=0.03`.

A composition is ratio × surrogate × aggregate, then − coefficient · the estimator of the reference
KL; [below](#parts) is what each part computes. The advantage is GRPO's unless another one is named.
r is the ratio of a token's probabilities, A its advantage, sg(…) a constant; the number of
`ConstantNorm` is `rollout.max_tokens`.

The picture is the weight ∂objective/∂log π of a token over its ratio r: blue for A = 1, orange for
A = −1, cut off at ±4. The token's old probability is 0.05, the entropy there 0.5 nats, and its
sequence has no other. All methods need groups of samples for their advantages.
"""
HEADS = ("method", "weight", "about", "formula", "composition", "constants", "needs")
# Keys of every method, described in docs/configuration.md.
SHARED = re.compile(r"entropy_(coef|floor|coef_step|coef_max)$")


def document() -> tuple[str, dict[str, str]]:
    """The page, and the text of each picture by the name of its file."""
    methods = load_methods(ALL)
    losses = {method.name: built(method) for method in methods}
    page = [HEADER]
    for family in FAMILIES:
        own = [method for method in methods if method.family == family]
        page += [f"## {family[0].upper()}{family[1:]}", "", *table(own, losses), ""]
    kinds = {type(part) for loss in losses.values() for part in parts(loss)} - {PolicyLoss}
    page += ["## Parts", ""]
    for kind in sorted(kinds, key=lambda kind: kind.__name__):
        page += [f"### {kind.__name__}", "", *described(kind)]
    pictures = {f"{method.name}.svg": picture(method) for method in methods}
    return "\n".join(page).rstrip() + "\n", pictures


def built(method: Method) -> PolicyLoss:
    """The loss as its file says, with aggregate and reference KL, without the entropy bonus."""
    assert method.config is not None
    loss: PolicyLoss = instantiate(method.config.loss)
    return dataclasses.replace(loss, entropy=None)


def table(methods: list[Method], losses: dict[str, PolicyLoss]) -> Iterator[str]:
    """A row per method."""
    yield f"| {' | '.join(HEADS)} |"
    yield "|---" * len(HEADS) + "|"
    for method in methods:
        cells = (
            f"`{method.name}`",
            f"![](methods/{method.name}.svg)",
            about(method.name),
            formula(method),
            composition(losses[method.name], method),
            constants(method),
            ", ".join(needs(method)) or "–",
        )
        yield f"| {' | '.join(cells)} |"


def about(name: str) -> str:
    """The comment at the head of the method's file: what it is, and its source."""
    text = (config_dir() / "method" / f"{name}.yaml").read_text(encoding="utf-8")
    lines = text.splitlines()
    lines = lines[1:] if lines[0].startswith("# @package") else lines
    head = lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]
    return " ".join(line.removeprefix("# ") for line in head).replace("|", "\\|")


def formula(method: Method) -> str:
    """The first lines of the docstrings of the surrogate inside and of its bounds."""
    surrogate: Any = method.loss.surrogate
    while isinstance(surrogate, DualClip):
        surrogate = surrogate.surrogate
    bounds = getattr(surrogate, "bounds", None)
    bounds = bounds.inner if isinstance(bounds, Capped) else bounds
    lines = ((inspect.getdoc(type(p)) or "").splitlines()[0] for p in (surrogate, bounds) if p)
    return " ".join(lines).replace("|", "\\|")


def composition(loss: PolicyLoss, method: Method) -> str:
    """The parts, each a link, with the values they were given."""
    text = " × ".join(map(linked, (loss.ratio, loss.surrogate, loss.aggregate)))
    if (kl := loss.reference_kl) is not None and loss.needs_reference:
        weighted = f" · {linked(kl.ratio)}" if kl.ratio is not None else ""
        text += f" − {kl.coefficient:g} · {linked(kl.estimator)}{weighted}"
    function = getattr(method.advantage, "func", method.advantage)
    if function is not group_advantages:
        text += f"; advantage `{function.__name__}`"
    return text


def linked(part: Any) -> str:
    """A part with its arguments: parts as links, numbers as they are."""
    if not dataclasses.is_dataclass(part):
        return f"{part:g}" if isinstance(part, int | float) else str(part)
    name = type(part).__name__
    given = (getattr(part, f.name) for f in dataclasses.fields(part) if f.init and f.repr)
    inner = ", ".join(map(linked, given))
    return f"[{name}](#{name.lower()})" + (f"({inner})" if inner else "")


def constants(method: Method) -> str:
    """The method's own keys and their values."""
    assert method.config is not None and method.config.model_extra is not None
    found = method.config.model_extra.items()
    shown = (f"`{k}` {v}" for k, v in found if not (SHARED.match(k) or isinstance(v, dict)))
    return ", ".join(shown)


def parts(value: Any) -> Iterator[Any]:
    """A loss and the dataclasses inside it."""
    if not dataclasses.is_dataclass(value) or isinstance(value, partial):
        return
    yield value
    for f in dataclasses.fields(value):
        yield from parts(getattr(value, f.name))


def described(kind: type) -> Iterator[str]:
    """A class's docstring without the errors it raises, as Markdown."""
    text = inspect.getdoc(kind) or ""
    text = re.sub(r"\s*\b(Raises)\b.*?\.(?=\s|$)", "", text, flags=re.DOTALL)
    for paragraph in re.split(r"\n\s*\n", text):
        body, _, source = paragraph.partition("Source: ")
        if body.startswith("    "):
            yield from ["```text", inspect.cleandoc(body), "```", ""]
        elif body.strip():
            yield from [" ".join(body.split()), ""]
        if source:
            yield from [f"*Source:* {' '.join(source.split())}", ""]


if __name__ == "__main__":
    text, pictures = document()
    (DOCS / "methods.md").write_text(text, encoding="utf-8")
    folder = DOCS / "methods"
    folder.mkdir(exist_ok=True)
    for stale in folder.glob("*.svg"):
        stale.unlink()
    for name, drawn in pictures.items():
        (folder / name).write_text(drawn, encoding="utf-8")
    print(f"wrote methods.md and {len(pictures)} pictures")
