"""Surrogates of `bandpo.loss` in verl's registry of policy losses (tried with verl 0.9.1).

Importing this module registers `METHODS`: with `model.external_lib=bandpo.integrations.verl` every
worker of verl does so, and `actor.policy_loss.loss_mode=band_kl` chooses one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from verl.trainer.ppo.core_algos import agg_loss, register_policy_loss

import bandpo.loss as bp
from bandpo.integrations.fit import require_fit
from bandpo.loss import Ratio, Surrogate, SurrogateOutput, TokenBatch, TokenRatio
from bandpo.loss.surrogate import require_surrogate

TOKEN_RATIO = TokenRatio()
METHODS: dict[str, Surrogate] = {
    name: bp.DualClip(bp.Clip(bp.Capped(bounds, max_ratio=10.0)), c=10.0)
    for name, bounds in {
        "band_kl": bp.BandKL(delta=0.05),
        "band_tv": bp.BandTV(delta=0.05),
        "band_chi2": bp.BandChi2(delta=0.05),
        "band_hellinger": bp.Band(bp.SquaredHellinger(), delta=0.05),
        "band_kl_relaxed": bp.Union(bp.BandKL(delta=0.05), bp.Fixed(0.2, 0.28)),
        "band_kl_upper": bp.Mixed(low=bp.Fixed(0.2, 0.0), high=bp.BandKL(delta=0.05)),
        "dcpo": bp.DynamicAdaptive(0.16, 0.20),
    }.items()
} | {"cfpo": bp.QuadraticPenalty(0.2)}
"""The surrogates of `configs/method/`, of those that verl does not have itself."""


def register(name: str, surrogate: Surrogate, ratio: Ratio = TOKEN_RATIO) -> None:
    """Makes −surrogate(ratio) a policy loss of verl: `actor.policy_loss.loss_mode=<name>`.

    verl aggregates it (`loss_agg_mode`), weighs it (`rollout_is_weights`) and adds its own KL and
    entropy; its `clip_ratio*` have no effect. Raises UserError for parts that need more than
    log-probabilities and advantages, or that follow the training step, which verl does not report.
    """
    require_surrogate(register, surrogate)

    def apply(batch: TokenBatch) -> SurrogateOutput:
        return surrogate(ratio(batch), batch)

    def trial(batch: TokenBatch) -> Tensor:
        output = apply(batch)
        return torch.stack([output.objective, *output.interval])

    require_fit("verl", surrogate, trial, has_step=False)

    @register_policy_loss(name)
    def policy_loss(
        old_log_prob: Tensor,
        log_prob: Tensor,
        advantages: Tensor,
        response_mask: Tensor,
        loss_agg_mode: str = "token-mean",
        config: Any = None,
        rollout_is_weights: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, float]]:
        batch = TokenBatch(log_prob, old_log_prob, advantages, response_mask).neutral()
        output = apply(batch)
        value = -output.objective
        if rollout_is_weights is not None:
            value = value * rollout_is_weights
        loss = agg_loss(value, batch.mask, loss_agg_mode, **config.global_batch_info)
        return loss, _metrics(batch, output)


def _metrics(batch: TokenBatch, output: SurrogateOutput) -> dict[str, float]:
    """Means over a micro-batch's tokens, by verl's names; `_lower` is the share of a dual clip."""
    floored = output.binding_high & (batch.advantages < 0)
    values = {
        "actor/pg_clipfrac": (output.binding_high | output.binding_low) & ~floored,
        "actor/ppo_kl": batch.old_logp - batch.logp.detach(),
        "actor/pg_clipfrac_lower": floored,
    }
    tokens = batch.mask.sum().clamp(min=1)
    return {name: ((v * batch.mask).sum() / tokens).item() for name, v in values.items()}


for name, surrogate in METHODS.items():
    register(name, surrogate)
