"""Runs what fits into the minutes, one check after another."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.check import Check, Lab, Outcome
from benchmarks.gpu.checks import CHECKS
from benchmarks.gpu.results import FOLDER, Record, card, details, table
from benchmarks.gpu.worker import Worker

# A check that takes so many times what it takes on an H200, and so many seconds, has failed.
PATIENCE, GRACE = 3.0, 60.0


def run(
    checks: Sequence[Check], lab: Lab, minutes: float, record: Record | None
) -> dict[str, Outcome]:
    """Every check's outcome; those that do not fit into the minutes left are not run."""
    deadline = time.monotonic() + 60 * minutes
    worker, outcomes = Worker(lab), dict[str, Outcome]()
    for check in checks:
        left = deadline - time.monotonic()
        print(f"{check.name}: {check.question}", flush=True)
        outcome = _outcome(worker, check, left)
        print(f"  {outcome.verdict}, {outcome.seconds:.0f} s {outcome.reason}", flush=True)
        for name, figure in outcome.figures.items():
            print(f"    {name}: {figure}", flush=True)
        outcomes[check.name] = outcome
        if record is not None:
            record.keep(check, outcome)
    worker.close()
    return outcomes


def _outcome(worker: Worker, check: Check, left: float) -> Outcome:
    """Of a check that may take so many seconds."""
    if missing := check.missing():
        return Outcome("not run", reason=f"needs {', '.join(missing)}")
    if left < check.seconds:
        return Outcome("not run", reason=f"needs {check.seconds:.0f} s, {left:.0f} s left")
    patience = PATIENCE * check.seconds + GRACE
    if outcome := worker.run(check, min(left, patience)):
        return outcome
    if left < patience:
        return Outcome("not run", reason=f"the minutes were over after {left:.0f} s of it")
    return Outcome("failed", patience, f"takes longer than {patience:.0f} s")


def main() -> int:
    """0 where nothing failed."""
    parser = argparse.ArgumentParser(prog="gpu_check.sh", description=__doc__)
    parser.add_argument("--minutes", type=float, default=9.0, help="stop in time for these")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, on a CPU too")
    parser.add_argument("--only", help="names of checks, separated by commas")
    parser.add_argument("--models", default="", help="folders of models, separated by commas")
    parser.add_argument(
        "--folder", type=Path, help="of the results; a tiny run has none of its own"
    )
    arguments = parser.parse_args()
    wanted = arguments.only.split(",") if arguments.only else [check.name for check in CHECKS]
    if unknown := set(wanted) - {check.name for check in CHECKS}:
        parser.error(f"no check {', '.join(sorted(unknown))}; there are {', '.join(wanted)}")
    lab = Lab(arguments.tiny, [model for model in arguments.models.split(",") if model])
    if not (lab.on_gpu or lab.tiny):
        parser.error("needs an NVIDIA GPU that torch sees; --tiny runs toys on a CPU")
    folder = arguments.folder or (None if lab.tiny else FOLDER)
    record = Record(folder) if folder else None
    checks = [check for check in CHECKS if check.name in wanted]
    outcomes = run(checks, lab, arguments.minutes, record)
    if record is not None:
        found = {"card": card(), "checks": record.checks}
        print(table(CHECKS, {card(): found}), details(card(), found), sep="\n\n")
        print(f"written to {record.path}")
    return 1 if any(outcome.verdict == "failed" for outcome in outcomes.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
