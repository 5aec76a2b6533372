"""`bandpo eval`: a checkpoint on benchmarks, to a table, summary.json and report.html."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from bandpo.commands.composed import Composed
from bandpo.config.composition import compose
from bandpo.config.overrides import verbatim
from bandpo.errors import UserError
from bandpo.evaluation.eval_config import EvalCommand
from bandpo.evaluation.inheritance import inheritance, model_of, model_sampling
from bandpo.evaluation.presets import with_preset
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
        "eval.preset",
        "eval.n",
        "eval.temperature",
        "eval.sampling",
        "eval.stop",
        "eval.max_tokens",
        "eval.template",
        "eval.system_prompt",
        "eval.chat_template",
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
        "bandpo eval model=Qwen/Qwen3-8B benchmarks=[math] eval.preset=qwen3-thinking",
        "bandpo eval model=outputs/my-run rollout=hf eval.limit=20   # without vLLM, a quick look",
        "bandpo launch --nproc 8 eval model=outputs/my-run benchmarks=[math500]",
    ),
)


def main(argv: Sequence[str]) -> int:
    """Runs one evaluation; arguments are hydra overrides of configs/eval.yaml.

    A preset stands for its settings. A run's checkpoint is evaluated as the run was, where the
    arguments do not say otherwise; with `eval.sampling=model` the model's own settings go before
    the run's.
    """
    if (words := COMMAND.words(with_preset(argv))) is None:
        return 0
    own = inheritance(model_of(words), torch.cuda.is_available())
    config = _composed(own.besides(words) if own else {}, words)
    lines: list[str] = []
    if config.eval.sampling == "model":
        if config.by_name_only:
            raise UserError(
                "eval.sampling=model reads the model's generation_config.json, and an endpoint's "
                "model is only a name: set eval.temperature and the others yourself"
            )
        sampling = model_sampling(config.model, config.allow_pickle)
        lines = sampling.lines(words)
        words = [*(override_of(k, v) for k, v in sampling.besides(words).items()), *words]
        config = _composed(own.besides(words) if own else {}, words)
    if own:
        now = {f"eval.{key}": value for key, value in config.eval.model_dump(mode="json").items()}
        lines += own.lines(words, now | {"dtype": config.dtype})
    if lines and os.environ.get("RANK", "0") == "0":
        print(*lines, sep="\n", flush=True)
    evaluate_model(config)
    return 0


def _composed(settings: Mapping[str, Any], words: Sequence[str]) -> EvalCommand:
    """The configuration with settings that no argument gives, and the arguments."""
    overrides = [_override(key, value) for key, value in settings.items()]
    return compose("eval", [*overrides, *words], EvalCommand)


def _override(key: str, value: Any) -> str:
    """An override that sets a run's value, whatever is in a text."""
    return verbatim(key, value) if isinstance(value, str) else override_of(key, value)
