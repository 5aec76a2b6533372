"""`bandpo eval`: a checkpoint on benchmarks, to a table, summary.json and report.html."""

from __future__ import annotations

from collections.abc import Sequence

from bandpo.config.composition import compose
from bandpo.evaluation.eval_config import EvalCommand
from bandpo.evaluation.standalone import evaluate_model


def main(argv: Sequence[str]) -> int:
    """Runs one evaluation; arguments are hydra overrides of configs/eval.yaml."""
    evaluate_model(compose("eval", argv, EvalCommand))
    return 0
