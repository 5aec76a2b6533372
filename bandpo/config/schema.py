"""The schema of a run's configuration: typed, documented and range-checked.

Its sections are in `bandpo.config.sections`. `bandpo.config.composition` makes it from the YAML
files of `configs/` and a user's overrides; `bandpo.config.cross_checks` checks settings against
each other.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from bandpo.config.section import HARMLESS, Section
from bandpo.config.sections.data import DataConfig
from bandpo.config.sections.learner import LearnerConfig
from bandpo.config.sections.model import ModelConfig
from bandpo.config.sections.rollout import RolloutConfig
from bandpo.config.sections.trainer import EvalConfig, RunConfig, TrackingConfig, TrainerConfig

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

    name: str
    loss: dict[str, Any] = Field(description="hydra `_target_` tree of a PolicyLoss.")
    advantage: dict[str, Any] = Field(description="hydra `_target_` of rewards → advantages.")


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
        json_schema_extra={"resume": {"workers": "harmless", "memory_mib": "harmless"}}
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


def longest_sequence(config: Config) -> int:
    """Tokens of the longest prompt with the longest completion, in training or evaluation."""
    completion = max(config.rollout.max_tokens, config.eval.max_tokens)
    return config.data.max_prompt_tokens + completion
