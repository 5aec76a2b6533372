"""Results of the checks by GPU, kept in benchmarks/results and shown in docs/gpu.md."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from bandpo.environment import hardware, versions
from benchmarks.gpu.check import Check, Outcome

FOLDER = Path(__file__).parents[1] / "results"


def card() -> str:
    """The GPU's name, or `cpu`."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


class Record:
    """The results of one kind of card, written after every check.

    What a check found stays until the check runs again: one that is not run takes nothing away.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / f"gpu-{card().lower().replace(' ', '-')}.json"
        folder.mkdir(parents=True, exist_ok=True)
        self.checks: dict[str, dict[str, Any]] = {}
        if self.path.exists():
            self.checks = json.loads(self.path.read_text(encoding="utf-8"))["checks"]

    def keep(self, check: Check, outcome: Outcome) -> None:
        """Adds an outcome with its date and versions."""
        known = self.checks.get(check.name, {"verdict": "not run"})
        if outcome.verdict == "not run" and known["verdict"] != "not run":
            return
        facts = {"date": datetime.date.today().isoformat(), "versions": versions()}
        found = {key: value for key, value in asdict(outcome).items() if value}
        self.checks[check.name] = {**found, **facts}
        text = json.dumps({"card": card(), "machine": _machine(), "checks": self.checks}, indent=2)
        partial = self.path.with_suffix(".partial")
        partial.write_text(text + "\n", encoding="utf-8")
        partial.replace(self.path)


def _machine() -> dict[str, Any]:
    facts = hardware()
    if torch.cuda.is_available():
        whole = torch.cuda.get_device_properties(0).total_memory
        facts |= {"gpu_memory_gib": round(whole / 2**30, 1), "cuda": torch.version.cuda}
    return facts


def table(checks: Iterable[Check], records: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: a row for each check, a column for each card; an empty cell has not run."""
    rows = [["check", *records], ["---"] * (1 + len(records))]
    for check in checks:
        cells = [_verdict(record["checks"].get(check.name)) for record in records.values()]
        rows.append([f"`{check.name}`: {check.question}", *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _verdict(outcome: Mapping[str, Any] | None) -> str:
    """Empty where it has not run."""
    if outcome is None or outcome["verdict"] == "not run":
        return ""
    return f"{outcome['verdict']} {outcome['date']}"


def details(card: str, record: Mapping[str, Any]) -> str:
    """Markdown: what was found on a card, with the bars, or why a check has not run there."""
    lines = [f"## {card}", "", "| check | found |", "|---|---|"]
    for name, outcome in record["checks"].items():
        shown = [_shown(*item) for item in outcome.get("figures", {}).items()]
        if reason := outcome.get("reason"):
            said = reason.splitlines()[0].replace("|", "/")
            shown.insert(0, f"{outcome['verdict']}: {said}")
        lines.append(f"| `{name}` | {'; '.join(shown)} |")
    used = [outcome["versions"] for outcome in record["checks"].values()]
    packages = {name: version for versions in used for name, version in versions.items()}
    listed = ", ".join(f"{name} {version}" for name, version in packages.items())
    return "\n".join([*lines, "", f"With {listed}.", ""])


def _shown(name: str, figure: Mapping[str, float]) -> str:
    bars = {"at_most": "≤", "at_least": "≥"}
    held = "".join(f" ({sign} {figure[key]:g})" for key, sign in bars.items() if key in figure)
    return f"{name.replace('_', ' ')} {figure['value']:.4g}{held}"
