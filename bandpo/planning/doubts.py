"""Settings that compose and run, and hardly ever are what their user wants."""

from __future__ import annotations

from collections.abc import Iterator

from bandpo.config.schema import Config
from bandpo.model.architecture import Shape

REAL_MODEL = 100e6
"""Parameters from which on the learning rates of small networks ruin a policy."""
HIGH_LR = 1e-5
HIGH_LORA_LR = 1e-3
SHORT_COMPLETION = 128


def doubts(config: Config, shape: Shape, context: int | None) -> Iterator[str]:
    """A line per setting that looks wrong, with what to do; `context` is the model's, in tokens."""
    learner, rollout = config.learner, config.rollout
    size = f"{shape.parameters / 1e6:,.0f} M parameters"
    real = shape.parameters > REAL_MODEL
    highest, usual = (HIGH_LORA_LR, "1e-5 to 1e-4") if learner.lora.rank else (HIGH_LR, "1e-6")
    if real and learner.lr > highest:
        trained = "adapters on " if learner.lora.rank else ""
        yield f"learner.lr={learner.lr:g} is high for {trained}{size}: {usual} is usual"
    if real and rollout.max_tokens < SHORT_COMPLETION:
        yield (
            f"rollout.max_tokens={rollout.max_tokens} cuts off most answers of a model of {size}: "
            "1024 or more is usual"
        )
    for key, completion in (
        ("rollout.max_tokens", rollout.max_tokens),
        ("eval.max_tokens", config.eval.max_tokens if config.eval.benchmarks else 0),
    ):
        prompt = config.data.max_prompt_tokens
        if context is not None and prompt + completion > context:
            yield (
                f"data.max_prompt_tokens={prompt} and {key}={completion} make {prompt + completion}"
                f" tokens, more than the {context} of the model's context: lower one of them"
            )
    if not config.eval.benchmarks:
        yield (
            "no evaluation: nothing will show whether the policy improves on problems that it is "
            "not trained on; eval.benchmarks=[math500] (docs/evaluation.md)"
        )
