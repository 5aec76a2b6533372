"""TRL's settings and samples in the terms of `bandpo.loss`; imports nothing of TRL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bandpo.errors import UserError
from bandpo.loss import BatchTotals, LossOutput, PolicyLoss, TokenBatch

CLIPPED = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")
"""The values of `loss_type` with epsilon_low and epsilon_high as a clip range."""

REPLACED = (
    "loss_type",
    "epsilon",
    "epsilon_high",
    "delta",
    "importance_sampling_level",
    "top_entropy_quantile",
    "off_policy_mask_threshold",
    "entropy_coef",
    "use_adaptive_entropy",
    "sapo_temperature_pos",
    "sapo_temperature_neg",
    "vespo_k_pos",
    "vespo_k_neg",
    "vespo_lambda_pos",
    "vespo_lambda_neg",
)
"""The settings of TRL's own loss."""


def require_version(version: str) -> None:
    """Raises UserError for TRL before 1.16, whose trainer may compute its loss elsewhere."""
    if tuple(int(part) for part in version.split(".")[:2]) < (1, 16):
        raise UserError(f"bandpo.integrations.trl needs TRL 1.16 or later, this is {version}.")


def problems_of(settings: Any, loss: PolicyLoss) -> list[str]:
    """The settings of a GRPOConfig that do not fit a loss, each with the change that is needed."""
    defaults = {name: settings.__dataclass_fields__[name].default for name in REPLACED}
    problems = [
        f"{name}={getattr(settings, name)} has no effect on a PolicyLoss: leave it at {default}"
        for name, default in defaults.items()
        if getattr(settings, name) != default
    ]
    beta = loss.reference_kl.coefficient if loss.reference_kl is not None else 0.0
    if settings.beta != beta:
        problems.append(f"beta={settings.beta}: it must be reference_kl's coefficient, {beta}")
    if settings.use_vllm and settings.vllm_importance_sampling_correction:
        problems.append(
            "vllm_importance_sampling_correction=True has no effect on a PolicyLoss: set it to "
            "False; PolicyLoss(…, correction=Truncate(TokenMismatch(), 2.0)) corrects instead"
        )
    if loss.entropy is not None and loss.entropy.floor is not None:
        problems.append("entropy.floor: only `bandpo train` moves an EntropyBonus by its floor")
    return problems


def batch_of(
    inputs: dict[str, Any],
    logp: Tensor,
    old_logp: Tensor,
    step: int,
    new_entropy: Tensor | None = None,
) -> TokenBatch:
    """The samples of a micro-batch; `step` counts optimizer steps."""
    advantages, sampled = inputs["advantages"], inputs.get("sampling_per_token_logps")
    advantages = advantages[:, None] if advantages.dim() == 1 else advantages
    return TokenBatch(
        logp=logp,
        old_logp=old_logp,
        advantages=advantages.expand_as(logp),
        mask=inputs["completion_mask"] * inputs.get("tool_mask", 1),
        ref_logp=inputs.get("ref_per_token_logps"),
        # Tokens that vLLM could not score, NaN, count as sampled from the old policy.
        rollout_logp=None if sampled is None else sampled.where(~sampled.isnan(), old_logp),
        new_entropy=new_entropy,
        step=step,
    )


def totals_of(
    inputs: dict[str, Any], micro_batches: int, of_generation: int, ranks: int
) -> BatchTotals:
    """TRL's counts of an optimizer step: all its rows, and its share of a generation's tokens.

    `num_items_in_batch` are the tokens of a generation, of all ranks, which is trained on in
    `of_generation` micro-batches per rank, `micro_batches` of them in a step. They are TRL's
    denominators of grpo, dr_grpo, luspo (rows) and dapo (tokens).
    """
    return BatchTotals(
        sequences=len(inputs["completion_ids"]) * micro_batches * ranks,
        tokens=float(inputs["num_items_in_batch"].clamp(min=1)) * micro_batches / of_generation,
    )


def metrics_of(output: LossOutput, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
    """By TRL's names, means over the tokens of all ranks; `reduce` sums a tensor over them."""
    values = {
        "entropy": output.batch.new_entropy,
        "kl": output.reference_kl,
        "clip_ratio/low_mean": output.binding_low,
        "clip_ratio/high_mean": output.binding_high,
        "clip_ratio/region_mean": output.binding_low | output.binding_high,
    }
    known = {name: value.detach() for name, value in values.items() if value is not None}
    mask = output.batch.mask
    sums = torch.stack([*((value * mask).sum() for value in known.values()), mask.sum()])
    *sums, tokens = reduce(sums).tolist()
    return {name: total / max(tokens, 1) for name, total in zip(known, sums, strict=True)}
