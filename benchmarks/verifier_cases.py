"""How often the verifier decides as a person did, over any file of labelled answers.

    python benchmarks/verifier_cases.py ../shared/data/verifier_cases.jsonl [--failing] [--plain]

Each line of a file is {id, prediction, gold, expected, kind}: a completion, the reference answer,
whether they are equal, and what makes the case hard. Counts go to results/verifier.json; with
--plain, those of math-verify by itself (reference boxed, its defaults) stand beside them.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bandpo.reward import MathVerifier, verifier_version

RESULTS = Path(__file__).parent / "results" / "verifier.json"

Case = dict[str, Any]
Verdicts = list[tuple[bool, str]]  # whether it counts as correct, and why in a word


def ours(cases: Sequence[Case], workers: int, timeout: float) -> Verdicts:
    """The verifier's verdicts; timeouts are of a machine that may be busy, so they are long."""
    with MathVerifier(workers=workers, timeout=timeout) as verifier:
        scores = verifier.score([(case["prediction"], case["gold"]) for case in cases])
    return [(score.correct, score.detail or score.status) for score in scores]


def plain(cases: Sequence[Case]) -> Verdicts:
    """The verdicts of math-verify alone."""
    from math_verify import parse, verify

    def decide(case: Case) -> bool:
        gold = parse(rf"\boxed{{{case['gold'].strip().strip('$')}}}")
        return bool(verify(gold, parse(case["prediction"])))

    return [(decide(case), "") for case in cases]


def figures(cases: Sequence[Case], verdicts: Verdicts) -> dict[str, Any]:
    """Counts in all and by kind: cases, right, false positives, false negatives."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for case, (correct, _) in zip(cases, verdicts, strict=True):
        for kind in ("", case["kind"]):
            counts[kind][0] += 1
            counts[kind][1] += correct and not case["expected"]
            counts[kind][2] += case["expected"] and not correct

    def named(kind: str) -> dict[str, int]:
        names = ("cases", "false_positives", "false_negatives")
        return dict(zip(names, counts[kind], strict=True))

    every = named("")
    right = 1 - (every["false_positives"] + every["false_negatives"]) / max(1, len(cases))
    return {
        "right": round(right, 4),
        **every,
        "by_kind": {k: named(k) for k in sorted(counts) if k},
    }


def show(name: str, columns: dict[str, dict[str, Any]]) -> None:
    """A line of totals per column, and one per kind that is not all right."""
    for column, found in columns.items():
        print(
            f"{name}, {column}: right {found['right']:.1%} of {found['cases']}, "
            f"{found['false_positives']} false positives, "
            f"{found['false_negatives']} false negatives"
        )
    for kind, count in columns["bandpo"]["by_kind"].items():
        if count["false_positives"] or count["false_negatives"]:
            print(
                f"  {kind:26s} {count['cases']:4d} cases  "
                f"{count['false_positives']:3d} +  {count['false_negatives']:3d} -"
            )


def main() -> None:
    """Measures each file, prints the counts and writes them down."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--failing", action="store_true", help="also print what is decided wrongly")
    parser.add_argument("--plain", action="store_true", help="also measure math-verify by itself")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds an answer may take")
    arguments = parser.parse_args()
    measures: dict[str, Callable[[Sequence[Case]], Verdicts]] = {
        "bandpo": lambda cases: ours(cases, arguments.workers, arguments.timeout),
        **({"math_verify": plain} if arguments.plain else {}),
    }
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for path in arguments.files:
        cases = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        verdicts = {column: measure(cases) for column, measure in measures.items()}
        columns = {column: figures(cases, found) for column, found in verdicts.items()}
        show(path.name, columns)
        if arguments.failing:
            for case, (correct, why) in zip(cases, verdicts["bandpo"], strict=True):
                if correct != case["expected"]:
                    sign = "+" if correct else "-"
                    print(f"{sign} {case['id']} [{case['kind']}] {why}")
                    print(f"      {case['prediction'][-300:]!r}\n      {case['gold']!r}")
        kept = results.setdefault("labelled", {}).setdefault(path.name, {})
        kept.update(columns, verifier=verifier_version())
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
