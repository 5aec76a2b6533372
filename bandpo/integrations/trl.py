"""TRL's GRPOTrainer with the trust regions and losses of `bandpo.loss` (tried with TRL 1.16)."""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch
import trl
from torch import Tensor
from trl import GRPOTrainer

from bandpo.errors import UserError
from bandpo.integrations.fit import require_fit
from bandpo.integrations.trl_inputs import (
    CLIPPED,
    batch_of,
    metrics_of,
    problems_of,
    require_version,
    totals_of,
)
from bandpo.loss import Bounds, PolicyLoss
from bandpo.loss.bounds import require_bounds

require_version(trl.__version__)
IMAGES = signature(GRPOTrainer._get_per_token_logps_and_entropies).parameters


class BoundsTrainer(GRPOTrainer):
    """A GRPOTrainer that clips each token's ratio to the interval of `bounds`; the rest is TRL's.

    Aggregation, KL, dual clip (`delta`), entropy mask and the corrections for vLLM stay TRL's, and
    its metrics count what these bounds clip. Raises UserError for a `loss_type` that does not clip
    and for bounds that need more than TRL knows of a token.
    """

    epsilon_low: float | Tensor
    epsilon_high: float | Tensor

    def __init__(self, *args: Any, bounds: Bounds, **kwargs: Any) -> None:
        require_bounds(self, bounds=bounds)
        require_fit("TRL", bounds, lambda batch: bounds.for_batch(batch)(batch.old_logp).high)
        super().__init__(*args, **kwargs)
        self.bounds = bounds
        if self.loss_type not in CLIPPED:
            raise UserError(f"BoundsTrainer: loss_type must be one that clips, of {CLIPPED}.")

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        old_logp = inputs.get("old_per_token_logps")
        if old_logp is None:  # on policy: every ratio is 1, which no interval clips
            return super()._compute_loss(model, inputs)
        batch = batch_of(inputs, old_logp, old_logp, self.state.global_step)
        low, high = self.bounds.for_batch(batch)(old_logp)
        fixed = self.epsilon_low, self.epsilon_high
        self.epsilon_low, self.epsilon_high = 1 - low, high - 1
        try:
            return super()._compute_loss(model, inputs)
        finally:
            self.epsilon_low, self.epsilon_high = fixed


class PolicyLossTrainer(GRPOTrainer):
    """A GRPOTrainer whose loss is any PolicyLoss; samples, rewards and advantages stay TRL's.

    Normalised by TRL's counts of an optimizer step: its rows, and its share of the tokens of a
    generation. Raises UserError for settings of TRL's own loss, which would have no effect, and for
    a loss that needs more than TRL knows of a token.
    """

    def __init__(self, *args: Any, loss: PolicyLoss, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.policy_loss = loss
        if problems := problems_of(self.args, loss):
            raise UserError.join("PolicyLossTrainer: settings that do not fit the loss", problems)
        reported = ["ref_logp"] * loss.needs_reference + ["rollout_logp"] * self.use_vllm
        require_fit("TRL", loss, lambda batch: loss(batch).loss, "new_entropy", *reported)

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        logp, entropy, router_loss = self._get_per_token_logps_and_entropies(
            model,
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
            torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
            inputs["completion_ids"].size(1),
            compute_entropy=True,
            compute_aux_loss=self.aux_loss_enabled,
            **{name: value for name, value in inputs.items() if name in IMAGES},
        )
        old_logp = inputs.get("old_per_token_logps", logp.detach())
        batch = batch_of(inputs, logp, old_logp, self.state.global_step, entropy)
        mode, ranks = "train" if self.model.training else "eval", self.accelerator.num_processes
        accumulated, per_generation = 1, 1  # evaluation neither accumulates nor splits its batch
        if mode == "train":
            accumulated = self.current_gradient_accumulation_steps
            per_generation = self.args.steps_per_generation
        output = self.policy_loss(batch, totals_of(inputs, accumulated, per_generation, ranks))
        metrics = metrics_of(output, self.accelerator.reduce)
        loss = output.loss * ranks  # gradients are averaged over them
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * router_loss / accumulated
            metrics["aux_loss"] = self.accelerator.reduce(router_loss.detach(), "mean").item()
        for name, value in metrics.items():
            self._metrics[mode][name].append(value)
        return loss
