"""The schema of a run's configuration: typed, documented and range-checked.

Its sections are in `bandpo.config.sections`. `bandpo.config.composition` makes it from the YAML
files of `configs/` and a user's overrides; `bandpo.config.cross_checks` checks settings against
each other.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from bandpo.config.rollout_correction import AUTO, NAMES, NONE, by_precision, quantised
from bandpo.config.section import HARMLESS, Section
from bandpo.config.sections.data import DataConfig
from bandpo.config.sections.learner import LearnerConfig
from bandpo.config.sections.model import ModelConfig
from bandpo.config.sections.rollout import RolloutConfig
from bandpo.config.sections.trainer import EvalConfig, RunConfig, TrackingConfig, TrainerConfig
from bandpo.errors import did_you_mean

MAX_SEED = 2**32 - 1  # NumPy's, which vLLM seeds too


# Keys of earlier versions and other spellings, and their replacements.
FORMER_KEYS = {
    "learner.warmup_steps": "it counted updates, as learner.warmup_updates does; "
    "learner.warmup_rollouts counts rollouts, which are the steps of trainer.steps",
    **{
        f"{place}columns.{role}": f"data.columns.{role}=… names it, whatever data.train is"
        for place in ("", "data.train.")
        for role in ("id", "problem", "answer", "answer_pattern")
    },
}


class MethodConfig(BaseModel):
    """A method; further keys are parameters that `loss` interpolates."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = Field(description="As tables, figures and by default run.name call it.")
    loss: dict[str, Any] = Field(description="hydra `_target_` tree of a PolicyLoss.")
    advantage: dict[str, Any] = Field(description="hydra `_target_` of rewards → advantages.")
    correction: str | dict[str, Any] = Field(
        AUTO,
        description="Weights for the gap between engine and learner (docs/mismatch.md): "
        f"{', '.join(NAMES)}, or a hydra `_target_`. auto: token_tis where either computes in less "
        "than float32, else none.",
    )

    @field_validator("correction", mode="before")
    @classmethod
    def _correction_is_known(cls, value: Any) -> Any:
        if isinstance(value, dict) or value in NAMES:
            return value
        if value is None:
            return NONE
        meant = did_you_mean(str(value), NAMES)
        raise ValueError(f"there are {', '.join(NAMES)}, or a `_target_` of your own{meant}")


class Config(Section):
    """Everything `bandpo train` reads."""

    seed: int = Field(
        ge=0, le=MAX_SEED, description="The seed that everything random is derived from."
    )
    run: RunConfig = Field(json_schema_extra=HARMLESS)
    model: ModelConfig
    data: DataConfig
    method: MethodConfig
    rollout: RolloutConfig
    reward: dict[str, Any] = Field(
        description="hydra `_target_` of a reward with its settings, or a file of configs/reward "
        "(docs/rewards.md).",
        json_schema_extra={"resume": {"workers": "harmless", "memory_mib": "harmless"}},
    )
    learner: LearnerConfig
    trainer: TrainerConfig = Field(json_schema_extra=HARMLESS)
    eval: EvalConfig = Field(json_schema_extra=HARMLESS)
    tracking: TrackingConfig = Field(json_schema_extra=HARMLESS)
    alarms: tuple[dict[str, Any], ...] = Field(
        (),
        description="hydra `_target_`s of `bandpo.alarms`: Below, Above, StuckAt.",
        json_schema_extra=HARMLESS,
    )


def engine_dtype(config: Config) -> str:
    """The dtype of the engine's weights."""
    return config.rollout.engine.get("dtype") or config.model.dtype


def coarsest_dtype(config: Config) -> str:
    """The dtype whose rounding sets engine and learner apart; a quantised engine's is coarse."""
    coarse = config.model.dtype != "float32" or quantised(config.rollout.engine)
    return "bfloat16" if coarse else engine_dtype(config)


def is_corrected(method: MethodConfig, rollout: RolloutConfig, model: ModelConfig) -> bool:
    """Whether the loss weighs samples by their policy's distance from the old one."""
    found = method.correction
    if found == AUTO:
        found = by_precision(model.dtype, rollout.engine, method.loss).name
    return found != NONE or method.loss.get("correction") is not None


def longest_sequence(config: Config) -> int:
    """Tokens of the longest prompt with the longest completion, in training or evaluation."""
    completion = max(config.rollout.max_tokens, config.eval.max_tokens)
    return config.data.max_prompt_tokens + completion
