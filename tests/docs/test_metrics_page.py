"""docs/metrics.md has every name that the code gives a metric, and no other."""

import ast
import re
from functools import cache
from pathlib import Path

import torch
from metrics_page import documented, undocumented

from bandpo.loss import (
    BandKL,
    Clip,
    LossDiagnostics,
    PolicyLoss,
    ReferenceKL,
    TokenBatch,
    TokenMean,
    TokenRatio,
)

PACKAGE = Path(__file__).resolve().parents[2] / "bandpo"
ROOMS = ("artifacts", "evaluation", "learner", "loss", "reward", "rollout", "run")
NAME = re.compile(r"[a-z]+/[a-z0-9_/{}]{2,}")  # not tok/s, km/h


def template(node: ast.AST | None) -> str | None:
    """A string, or an f-string with {} for what is filled in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(p.value if isinstance(p, ast.Constant) else "{}" for p in node.values)
    return None


@cache
def produced() -> set[str]:
    """Keys of dictionaries of the code that look like a metric's name."""
    found = set()
    for room in ROOMS:
        for path in (PACKAGE / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                keys = []
                if isinstance(node, ast.Dict):
                    keys = node.keys
                elif isinstance(node, ast.DictComp):
                    keys = [node.key]
                elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
                    keys = [node.slice]
                found |= {t for key in keys if (t := template(key)) and NAME.fullmatch(t)}
    return found


@cache
def diagnosed() -> set[str]:
    """The diagnostics' metrics of a batch that lacks nothing."""
    values = -torch.ones(2, 3)
    batch = TokenBatch(
        logp=values,
        old_logp=values,
        advantages=values,
        mask=-values,
        ref_logp=values,
        rollout_logp=values,
        entropy=-values,
    )
    loss = PolicyLoss(TokenRatio(), Clip(BandKL(0.05)), TokenMean(), ReferenceKL(0.1))
    diagnostics = LossDiagnostics()
    diagnostics.update(loss(batch))
    return set(diagnostics.metrics())


def pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.escape(template).replace(r"\{\}", ".+"))


def filled(name: str) -> str:
    """A name of the page with something in its placeholders."""
    return re.sub(r"<\w+>|…", "x", name)


def test_every_metric_of_the_code_is_on_the_page():
    named = {name for name in produced() if "{}" not in name}
    assert len(named) > 30
    assert undocumented(named | diagnosed()) == set()
    names = [filled(name) for name in documented()]
    composed = produced() - named
    assert [t for t in composed if not any(pattern(t).fullmatch(name) for name in names)] == []


def test_every_name_of_the_page_is_in_the_code():
    bins = "clip/bin_<from>_<to>/"
    templates = [pattern(t) for t in produced() | diagnosed()]
    others = [name for name in documented() if not name.startswith(bins)]
    assert [n for n in others if not any(t.fullmatch(filled(n)) for t in templates)] == []
    of_bins = {name.removeprefix(bins) for name in documented() if name.startswith(bins)}
    assert of_bins == {n.rpartition("/")[2] for n in diagnosed() if n.startswith("clip/bin_")}
