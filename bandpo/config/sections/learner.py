"""The optimizer side."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from bandpo.config.section import ROUNDING, Section

MICRO_BATCH_TOKENS = {"cuda": 16384, "cpu": 1024}


Beta = Annotated[float, Field(ge=0.0, lt=1.0)]  # of Adam's moving averages


class LoraConfig(Section):
    """Low-rank adapters instead of all weights; the reference policy is then the model without."""

    rank: int = Field(0, ge=0, description="Of the adapters; 0 trains all weights.")
    alpha: int = Field(16, ge=1, description="The adapters' output is scaled by alpha/rank.")
    targets: Literal["all-linear"] | tuple[str, ...] = Field(
        "all-linear", description="Names of the layers that get one, such as [q_proj, v_proj]."
    )


OFFLOAD_STAGES = {
    "none": (0, 1, 2, 3),
    "between_updates": (1, 2),  # under ZeRO 3 DeepSpeed does it with its own Adam alone
    "optimizer": (1, 2, 3),
    "parameters": (3,),
}
"""The ZeRO stages at which `learner.offload` may have a value."""


class LearnerConfig(Section):
    """The optimizer side."""

    zero_stage: Literal[0, 1, 2, 3] = Field(0, description="DeepSpeed ZeRO stage.")
    lr: float = Field(
        gt=0.0, le=1.0, description="AdamW's learning rate after the warm-up; see learner.schedule."
    )
    betas: tuple[Beta, Beta] = Field((0.9, 0.999), description="AdamW's, of its two averages.")
    eps: float = Field(1e-8, gt=0.0, description="AdamW's, in the denominator.")
    weight_decay: float = Field(0.0, ge=0.0, description="AdamW's, apart from the gradient.")
    warmup_rollouts: int = Field(
        0,
        ge=0,
        description="Rollouts (steps) of linear warm-up: updates on one have one learning rate.",
    )
    warmup_updates: int = Field(
        0,
        ge=0,
        description="Optimizer updates of linear warm-up; of both warm-ups the lower rate counts.",
    )
    max_grad_norm: float = Field(1.0, ge=0.0, description="0 turns gradient clipping off.")
    updates_per_rollout: int = Field(1, ge=1, description="Minibatches per rollout.")
    epochs_per_rollout: int = Field(1, ge=1, description="Passes over each rollout.")
    lora: LoraConfig = LoraConfig(rank=0, alpha=16, targets="all-linear")
    packing: bool = Field(
        True,
        description="Sequences of a micro-batch share one row without padding, each attending to "
        "itself alone; false: one padded row per sequence (faster with model.attention=eager).",
        json_schema_extra=ROUNDING,
    )
    micro_batch_tokens: int | None = Field(
        None,
        ge=1,
        description="Tokens, with padding, of one forward/backward pass on one rank; of a prompt "
        "that samples share, a repetition counts a quarter. null: the largest of 2048 to 32768 "
        "that fits on the GPU; 1024 on a CPU, whose caches hold the activations of so many.",
        json_schema_extra=ROUNDING,
    )
    logits_chunk: int = Field(
        1024,
        ge=1,
        description="Tokens whose logits exist at one time; peak memory is chunk × V.",
        json_schema_extra=ROUNDING,
    )
    offload: Literal["none", "between_updates", "optimizer", "parameters"] = Field(
        "none",
        description="Optimizer state in the CPU's memory: between_updates (ZeRO 1 and 2: while the "
        "engine works), optimizer (ZeRO ≥ 1: always, and updated there), parameters (ZeRO 3: "
        "weights too).",
    )
    schedule: Literal["constant", "linear", "cosine", "wsd"] = Field(
        "constant",
        description="The learning rate after the warm-up, the same for all updates on a rollout: "
        "linear and cosine fall until trainer.steps, wsd stays and falls over the last "
        "learner.decay_share of the steps. More or fewer trainer.steps on resume move the rates "
        "from there on, with a note.",
    )
    min_lr_ratio: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="The share of learner.lr to which a schedule falls.",
    )
    decay_share: float = Field(
        0.2,
        gt=0.0,
        le=1.0,
        description="learner.schedule=wsd: the share of the steps, the last ones, over which the "
        "rate falls, as 1 − √progress.",
    )
    prune: float = Field(
        0.0,
        ge=0.0,
        lt=1.0,
        description="The probability with which a sample of |advantage| below the step's mean is "
        "not computed; those that are count 1/(1 − prune) times, so that the expected gradient is "
        "that of all.",
    )

    def micro_batch_on(self, device: Literal["cuda", "cpu"]) -> int:
        """Tokens of one forward/backward pass there."""
        return self.micro_batch_tokens or MICRO_BATCH_TOKENS[device]
