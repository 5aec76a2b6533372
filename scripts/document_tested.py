#!/usr/bin/env python3
"""Writes docs/tested.md: what is tested where, from tests/tested.yaml, markers and results."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
TESTS, RESULTS = ROOT / "tests", ROOT / "benchmarks" / "results"
PAGE = Path(__file__).with_name("tested.md.template")
COLUMNS = ("fast suite", "slow suite", "benchmark on a CPU", "on a GPU", "never run")
MARKERS = ("slow", "gpu")


@dataclass(frozen=True)
class Feature:
    """A line of tests/tested.yaml.

    gpu  checks of scripts/gpu_check.sh; None where a GPU makes no difference
    """

    feature: str
    tests: Sequence[str]
    gpu: Sequence[str] | None = ()
    results: Sequence[str] = ()
    never: str = ""

    @classmethod
    def of(cls, line: Mapping[str, Any]) -> Feature:
        checks = line.get("gpu", ())
        return cls(**{**line, "gpu": None if checks is False else checks})

    def suites(self) -> dict[str, list[str]]:
        """Its test files by suite: `fast`, `slow` and `gpu`."""
        found: dict[str, list[str]] = {"fast": [], "slow": [], "gpu": []}
        for test in self.tests:
            file = test.partition("::")[0]
            for suite in suites(test):
                if file not in found[suite]:
                    found[suite].append(file)
        return found


def features() -> dict[str, list[Feature]]:
    """The lines of tests/tested.yaml by group."""
    groups = yaml.safe_load((TESTS / "tested.yaml").read_text(encoding="utf-8"))
    return {name: [Feature.of(line) for line in lines] for name, lines in groups.items()}


@cache
def suites_in(file: str) -> Mapping[str, frozenset[str]]:
    """The suites of each test function of a file below tests/, from its markers.

    A marker among the parameters alone puts some cases into another suite: then it is in both.
    """
    return suites_by_test((TESTS / file).read_text(encoding="utf-8"))


def suites_by_test(source: str) -> dict[str, frozenset[str]]:
    """As `suites_in`, of a module's text."""
    module = ast.parse(source)
    marks = [
        line.value
        for line in module.body
        if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == "pytestmark"
    ]
    whole = [mark for value in marks for mark in getattr(value, "elts", [value])]
    return {name: _suites([*whole, *own]) for name, own in _functions(module.body)}


def _functions(
    body: Sequence[ast.stmt], outer: Sequence[ast.expr] = ()
) -> Iterator[tuple[str, list[ast.expr]]]:
    for node in body:
        if isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
            yield from _functions(node.body, [*outer, *node.decorator_list])
        elif isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            yield node.name, [*outer, *node.decorator_list]


def _suites(marks: Sequence[ast.expr]) -> frozenset[str]:
    texts = [ast.unparse(mark) for mark in marks]
    for marker in reversed(MARKERS):  # a slow test for a GPU runs with those for GPUs
        if f"pytest.mark.{marker}" in texts:
            return frozenset({marker})
    some = {marker for marker in MARKERS if any(f"pytest.mark.{marker}" in text for text in texts)}
    return frozenset({"fast", *some})


def suites(test: str) -> frozenset[str]:
    """The suites of a file or of a test id; raises ValueError where there is none."""
    file, _, name = test.partition("::")
    known = suites_in(file)
    chosen = [name] if name else list(known)
    if not known.keys() >= set(chosen) or not chosen:
        raise ValueError(f"tests/tested.yaml: no test {test}")
    return frozenset().union(*(known[test_name] for test_name in chosen))


def gpu_records() -> dict[str, Mapping[str, Mapping[str, Any]]]:
    """Outcomes of checks by card, from benchmarks/results/gpu-*.json."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in _files("gpu-*.json")]
    return {record["card"]: record["checks"] for record in records}


def outcomes(check: str) -> list[str]:
    """`passed on NVIDIA H200, 2026-11-26`, for each card that a check has run on."""
    return [
        f"{found['verdict']} on {card}, {found['date']}"
        for card, checks in gpu_records().items()
        if (found := checks.get(check, {"verdict": "not run"}))["verdict"] != "not run"
    ]


def _files(pattern: str) -> list[Path]:
    return sorted(RESULTS.glob(pattern))


def row(feature: Feature) -> list[str]:
    """The cells of a feature."""
    found = feature.suites()
    ran = [(check, outcomes(check)) for check in feature.gpu or ()]
    on_gpu = [f"`{check}` {'; '.join(told)}" for check, told in ran if told]
    never = [f"`{check}` on a GPU" for check, told in ran if not told]
    never += [f"{_link(file)} on a GPU" for file in found["gpu"]]
    if feature.never:
        never = [feature.never, *(text for text in never if text.split()[0] not in feature.never)]
    elif feature.gpu == () and not never:
        never = ["on a GPU"]
    cells = [_links(found["fast"]), _links(found["slow"])]
    cells.append(", ".join(map(_result, feature.results)))
    gpu = "makes no difference" if feature.gpu is None else "; ".join(on_gpu)
    return [feature.feature, *cells, gpu, "; ".join(never)]


def _links(files: Sequence[str]) -> str:
    return ", ".join(map(_link, files))


def _link(file: str) -> str:
    source = (TESTS / file).read_text(encoding="utf-8")
    needs = re.findall(r"environ(?:\.get\(|\[)\"(BANDPO_\w+_PYTHON)", source)
    link = f"[{Path(file).stem.removeprefix('test_')}](../tests/{file})"
    return f"{link} (with `{needs[0]}`)" if needs else link


def _result(name: str) -> str:
    path = RESULTS / f"{name}.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    date = record.get("date") or record.get("machine", {}).get("date", "")
    return f"[{name}](../benchmarks/results/{path.name}){' ' if date else ''}{date}"


def table(lines: Sequence[Feature]) -> str:
    """Markdown: a row per feature."""
    rows = [["feature", *COLUMNS], ["---"] * (1 + len(COLUMNS)), *map(row, lines)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def document() -> str:
    """The whole page."""
    tables = [f"## {name}\n\n{table(lines)}\n" for name, lines in features().items()]
    return PAGE.read_text(encoding="utf-8").replace("{tables}", "\n".join(tables))


if __name__ == "__main__":
    target = ROOT / "docs" / "tested.md"
    target.write_text(document(), encoding="utf-8")
    print(f"wrote {target.relative_to(ROOT)}")
