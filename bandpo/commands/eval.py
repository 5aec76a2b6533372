"""`bandpo eval`: a checkpoint on benchmarks, to a table, summary.json and report.html."""

from __future__ import annotations

from collections.abc import Sequence

from bandpo.commands.composed import Composed
from bandpo.config.composition import compose
from bandpo.evaluation.eval_config import EvalCommand
from bandpo.evaluation.standalone import evaluate_model

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
        "bandpo eval model=Qwen/Qwen2.5-0.5B-Instruct benchmarks=[file:my.jsonl] eval.n=4",
        "bandpo eval model=embedded benchmarks=[arithmetic] eval.template=none eval.max_tokens=64",
        "bandpo eval model=outputs/my-run rollout=hf eval.limit=20   # without vLLM, a quick look",
    ),
)


def main(argv: Sequence[str]) -> int:
    """Runs one evaluation; arguments are hydra overrides of configs/eval.yaml."""
    if (words := COMMAND.words(argv)) is not None:
        evaluate_model(compose("eval", words, EvalCommand))
    return 0
