"""`bandpo rescore`: saved samples scored again by both rewards, and where these differ.

bandpo rescore outputs/my-run/samples/*.jsonl outputs/eval/my-model/*.jsonl --examples 20
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from bandpo.disk.space import require_folder
from bandpo.reward.disagreement import disagreement_report
from bandpo.reward.math import MathReward, MathVerifier, verifier_version
from bandpo.reward.release import ReleaseReward
from bandpo.reward.saved import saved_groups, verifier_of


def main(argv: Sequence[str]) -> int:
    """Prints the disagreement report of the given files."""
    parser = argparse.ArgumentParser(prog="bandpo rescore", description=__doc__.splitlines()[0])
    parser.add_argument("samples", nargs="+", type=Path, help="JSONL of a run or an evaluation")
    parser.add_argument("--examples", type=int, default=10, help="disagreements to show")
    parser.add_argument("--timeout", type=float, default=3.0, help="seconds an answer may take")
    parser.add_argument("--workers", type=int, default=2, help="verifier processes")
    parser.add_argument("--json", type=Path, help="file for the counts")
    arguments = parser.parse_args(list(argv))
    verifier = MathVerifier(timeout=arguments.timeout, workers=arguments.workers)
    with MathReward(verifier) as reward:
        groups = saved_groups(arguments.samples)
        report = disagreement_report(groups, reward, ReleaseReward(), ("math", "release"))
    print(report.render(arguments.examples))
    now = verifier_version()["version"]
    for version in sorted({str(verifier_of(path)) for path in arguments.samples} - {now}):
        print(f"saved scores of verifier {version} may differ from these, of verifier {now}")
    if arguments.json is not None:
        require_folder(arguments.json.parent, "--json in ")
        text = json.dumps(report.summary(), indent=2) + "\n"
        arguments.json.write_text(text, encoding="utf-8")
    return 0
