"""`bandpo eval`: a checkpoint on benchmarks, to a table, summary.json and report.html."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from bandpo.commands.composed import Composed
from bandpo.config.composition import compose
from bandpo.evaluation.eval_config import EvalCommand
from bandpo.evaluation.inheritance import inheritance, model_of
from bandpo.evaluation.standalone import evaluate_model
from bandpo.tables.recipe import override_of

COMMAND = Composed(
    "eval",
    EvalCommand,
    "Evaluates a model on benchmarks: a table, and samples, summary.json and report.html in `out`.",
    keys=(
        "model",
        "benchmarks",
        "out",
        "dtype",
        "data.root",
        "eval.n",
        "eval.temperature",
        "eval.max_tokens",
        "eval.template",
        "eval.max_prompt_tokens",
        "eval.limit",
        "eval.seed",
        "eval.resume",
    ),
    examples=(
        "bandpo eval model=outputs/my-run benchmarks=[amc23,math500]",
        "bandpo eval rollout=openai rollout.engine.url=https://api.openai.com/v1 model=NAME",
        "bandpo eval model=Qwen/Qwen2.5-0.5B-Instruct benchmarks=[file:my.jsonl] eval.n=4",
        "bandpo eval model=embedded benchmarks=[arithmetic] eval.template=none eval.max_tokens=64",
        "bandpo eval model=outputs/my-run rollout=hf eval.limit=20   # without vLLM, a quick look",
    ),
)


def main(argv: Sequence[str]) -> int:
    """Runs one evaluation; arguments are hydra overrides of configs/eval.yaml.

    A run's checkpoint is evaluated as the run was, where the arguments do not say otherwise.
    """
    if (words := COMMAND.words(argv)) is None:
        return 0
    own = inheritance(model_of(words), torch.cuda.is_available())
    inherited = own.besides(words) if own else {}
    overrides = [*(override_of(key, value) for key, value in inherited.items()), *words]
    config = compose("eval", overrides, EvalCommand)
    if own and os.environ.get("RANK", "0") == "0":
        now = {f"eval.{key}": value for key, value in config.eval} | {"dtype": config.dtype}
        print(*own.lines(words, now), sep="\n", flush=True)
    evaluate_model(config)
    return 0
