"""What the checks found on a card, kept in benchmarks/results and shown in docs/gpu.md."""

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


def table(checks: Iterable[Check], found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Markdown: a row for each check, a column for each card; an empty cell has not run."""
    cards = sorted(found)
    lines = [
        f"| check | {' | '.join(cards) or 'no GPU yet'} |",
        "|---" * (1 + max(1, len(cards))) + "|",
    ]
    for check in checks:
        cells = [_cell(found[card].get(check.name)) for card in cards] or [""]
        lines.append(f"| `{check.name}`: {check.question} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(outcome: Mapping[str, Any] | None) -> str:
    """Verdict, date and figures with a bar; empty where it has not run."""
    if outcome is None or outcome["verdict"] == "not run":
        return ""
    parts = [f"**{outcome['verdict']}** {outcome['date']}"]
    parts += [_shown(name, figure) for name, figure in outcome.get("figures", {}).items()]
    if reason := outcome.get("reason"):
        parts.append(reason.splitlines()[0][:200].replace("|", "/"))
    return "; ".join(parts)


def _shown(name: str, figure: Mapping[str, float]) -> str:
    bars = {"at_most": "≤", "at_least": "≥"}
    held = "".join(f" ({sign} {figure[key]:g})" for key, sign in bars.items() if key in figure)
    return f"{name.replace('_', ' ')} {figure['value']:.3g}{held}"
