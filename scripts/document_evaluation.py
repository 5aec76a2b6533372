#!/usr/bin/env python3
"""Writes the tables of docs/evaluation.md from configs/benchmark and configs/preset."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from bandpo.data.benchmarks import BenchmarkSpec, benchmark_spec, groups
from bandpo.evaluation.presets import Preset, preset_names, read_preset

PAGE = Path(__file__).resolve().parents[1] / "docs" / "evaluation.md"
SETTINGS = ("template", "choice_template", "n", "temperature", "top_p", "top_k", "max_tokens")
NAMED = [f"eval.{key}" for key in SETTINGS]


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in lines)


def answers(spec: BenchmarkSpec) -> str:
    """The kind of a benchmark's answers."""
    return "letters of choices" if spec.choices else f"{spec.answer_type}s"


def benchmarks() -> str:
    """A row per benchmark of the hub."""
    rows = []
    for spec in map(benchmark_spec, groups()["all"]):
        sources = [spec.source, *spec.also]
        places = [
            " ".join(filter(None, [f"`{s.hub}`", s.subset, s.split]))  # type: ignore[union-attr]
            for s in sources
        ]
        gated = " (gated)" if spec.gated else ""
        rows.append((f"`{spec.name}`", ", ".join(places) + gated, spec.size, answers(spec)))
    return table(("benchmark", "set, subset and split", "problems", "answers"), rows)


def others(preset: Preset) -> str:
    """The settings that few presets have."""
    return ", ".join(word.removeprefix("eval.") for word in preset.words(NAMED))


def presets() -> str:
    """A row per preset."""
    rows = [
        (f"`{name}`", *(preset.eval[key] for key in SETTINGS), others(preset), preset.source)
        for name in preset_names()
        for preset in [read_preset(name)]
    ]
    return table(("preset", *(f"`{key}`" for key in SETTINGS), "besides", "source"), rows)


def document(text: str) -> str:
    """The page with its tables made anew."""
    for name, made in (("benchmarks", benchmarks()), ("presets", presets())):
        mark = f"<!-- {name}: scripts/document_evaluation.py -->"
        found = re.compile(re.escape(mark) + r"\n(?:\|.*\n)*")
        if not found.search(text):
            raise SystemExit(f"{PAGE.name}: no line {mark}")
        text = found.sub(lambda _, new=f"{mark}\n{made}\n": new, text)
    return text


if __name__ == "__main__":
    PAGE.write_text(document(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"wrote {PAGE.name}")
