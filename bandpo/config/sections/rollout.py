"""Sampling: groups of completions in training."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from bandpo.config.section import HARMLESS
from bandpo.config.sections.sampling import STOP_DESCRIPTION, AlteredSection, Stops

# vLLM refuses higher temperatures, and silently raises lower ones to this.
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 2.0


# A prompt's samples have the seeds after the prompt's own (`bandpo.rollout.seeds`).
MAX_SAMPLES = 4096


class RolloutConfig(AlteredSection):
    """Sampling groups of completions."""

    engine: dict[str, Any] = Field(
        description="hydra `_target_` of the engine and its arguments.",
        json_schema_extra={
            "resume": {
                "max_num_seqs": "rounding",
                "tensor_parallel_size": "rounding",
                "enforce_eager": "rounding",
                "gpu_memory_utilization": "rounding",
                "urls": "rounding",
                "model": "harmless",
                "transfer": "harmless",
                "exchange": "harmless",
                "timeout_s": "harmless",
            }
        },
    )
    group_size: int = Field(32, ge=2, le=MAX_SAMPLES, description="G, samples per prompt.")
    prompts_per_step: int = Field(ge=1, description="P, prompts per step, over all ranks.")
    temperature: float = Field(
        1.0, ge=MIN_TEMPERATURE, le=MAX_TEMPERATURE, description="From 0.01 to 2, vLLM's range."
    )
    top_p: float = Field(
        1.0, gt=0.0, le=1.0, description="1 samples from the whole vocabulary; training needs it."
    )
    top_k: int = Field(0, ge=0, description="0 samples from the whole vocabulary.")
    max_tokens: int = Field(
        ge=1, description="Longest completion; with the longest prompt it must fit the model."
    )
    filter_groups: Literal[False, "accuracy", "reward"] = Field(
        False,
        description="Replace groups whose answers are all right or all wrong (accuracy, or true: "
        "DAPO's dynamic sampling), or whose rewards are all equal (reward).",
    )
    max_refills: int = Field(100, ge=1, description="Extra batches that filter_groups may draw.")
    lag: Literal[0, 1] = Field(
        0, description="1: servers sample the next step while the learner updates (docs/scale.md)."
    )
    max_weight: float = Field(
        2.0,
        ge=1.0,
        description="Truncates the importance ratios of lag 1; unused with lag 0 and with a "
        "rollout correction.",
    )
    probe_tolerance: float | None = Field(
        None,
        gt=0.0,
        description="Largest mean |engine − learner| of a completion's log-probabilities that is "
        "accepted after a weight sync; null: 3e-4 in float32, 0.1 in bfloat16 (docs/silent-"
        "faults.md).",
        json_schema_extra=HARMLESS,
    )
    stop: Stops = Field((), description=STOP_DESCRIPTION)
    truncated: Literal["keep", "mask", "penalise"] = Field(
        "keep",
        description="Completions that max_tokens cut off: trained on as they are (keep), out of "
        "the loss (mask), or with truncated_penalty off their reward (penalise) (docs/data.md).",
    )
    truncated_in_baseline: bool = Field(
        True,
        description="truncated=mask: whether the rewards of masked completions count in the mean "
        "and deviation of their group.",
    )
    truncated_penalty: float = Field(
        1.0, gt=0.0, description="What truncated=penalise takes off a reward; unused otherwise."
    )

    @field_validator("filter_groups", mode="before")
    @classmethod
    def _filter_by_accuracy(cls, value: Any) -> Any:
        return "accuracy" if value is True else value
