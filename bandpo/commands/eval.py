"""`bandpo eval`: a checkpoint on benchmarks, to a table, summary.json and report.html."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from bandpo.config.composition import compose
from bandpo.evaluation.eval_config import EvalCommand
from bandpo.evaluation.inheritance import inheritance, model_of
from bandpo.evaluation.standalone import evaluate_model
from bandpo.tables.recipe import override_of


def main(argv: Sequence[str]) -> int:
    """Runs one evaluation; arguments are hydra overrides of configs/eval.yaml.

    A run's checkpoint is evaluated as the run was, where the arguments do not say otherwise.
    """
    own = inheritance(model_of(argv), torch.cuda.is_available())
    inherited = own.besides(argv) if own else {}
    overrides = [*(override_of(key, value) for key, value in inherited.items()), *argv]
    config = compose("eval", overrides, EvalCommand)
    if own and os.environ.get("RANK", "0") == "0":
        now = {f"eval.{key}": value for key, value in config.eval} | {"dtype": config.dtype}
        print(*own.lines(argv, now), sep="\n", flush=True)
    evaluate_model(config)
    return 0
