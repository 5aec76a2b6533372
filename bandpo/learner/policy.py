"""The policy under DeepSpeed: its settings, the trained engine and the frozen reference."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bandpo.config.sections.learner import LearnerConfig
from bandpo.config.sections.model import ModelConfig
from bandpo.errors import UserError
from bandpo.learner.adapter import add_adapter
from bandpo.learner.attention import layout_for
from bandpo.learner.liger import use_liger
from bandpo.learner.logprobs import PolicyNetwork
from bandpo.learner.updates.rates import warm_up
from bandpo.model.loading import load_causal_lm
from bandpo.ranks.collectives import Ranks
from bandpo.ranks.joining import building_operators


@dataclass(frozen=True)
class PolicySource:
    """A policy to load, and the settings under which DeepSpeed holds it."""

    config: LearnerConfig
    model: ModelConfig
    model_path: str | Path
    temperature: float
    ranks: Ranks
    seed: int = 0

    def trained(self) -> tuple[Any, Any, Any]:
        """DeepSpeed's engine around the policy, its optimizer and its warm-up; collective."""
        import deepspeed

        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        settings = _deepspeed_config(self.config, self.model, self.ranks)
        network = self._network(settings)
        engine, optimizer, _, warming = deepspeed.initialize(
            model=network,
            optimizer=_optimizer(self.config, network),
            lr_scheduler=lambda optimizer: warm_up(self.config, optimizer),
            config=settings,
            dist_init_required=False,
        )
        if self.model.dtype == "bfloat16" and self.config.zero_stage == 0:
            _undo_first_step(optimizer)
        return engine, optimizer, warming

    def frozen(self) -> Any:
        """The policy before training, as the reference; sharded under ZeRO 3. Collective."""
        import deepspeed

        settings = _deepspeed_config(self.config, self.model, self.ranks)
        network = self._network(settings)
        network.eval().requires_grad_(False)
        if self.config.zero_stage < 3:
            return network.to(self.ranks.device)
        keep = ("train_micro_batch_size_per_gpu", "train_batch_size", "zero_optimization", "bf16")
        engine, *_ = deepspeed.initialize(
            model=network, config={key: settings[key] for key in keep}, dist_init_required=False
        )
        engine.eval()  # returns nothing, unlike a module's
        return engine

    def _network(self, settings: dict[str, Any]) -> PolicyNetwork:
        from transformers.integrations import HfDeepSpeedConfig
        from transformers.utils import logging as transformers_logging

        config, model = self.config, self.model
        transformers_logging.disable_progress_bar()

        # While it lives, from_pretrained shards as it loads: no rank holds all weights.
        sharding = HfDeepSpeedConfig(settings) if config.zero_stage == 3 else None
        lm = load_causal_lm(
            self.model_path,
            dtype=model.dtype,
            attention=layout_for(model.attention, config.packing)[1],
            trust_remote_code=model.trust_remote_code,
        )
        del sharding
        if model.kernels == "liger":
            use_liger(lm)
        if config.lora.rank:
            add_adapter(lm, config.lora, self.seed)
        if model.gradient_checkpointing:
            _recompute_activations(lm)
        return PolicyNetwork(lm, self.temperature, config.logits_chunk)


def _recompute_activations(lm: Any) -> None:
    try:
        lm.gradient_checkpointing_enable({"use_reentrant": False})
    except ValueError as error:
        raise UserError(f"model.gradient_checkpointing=true: {error}; set it to false") from None


def _deepspeed_config(config: LearnerConfig, model: ModelConfig, ranks: Ranks) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": config.zero_stage}
    if config.offload in ("optimizer", "parameters"):
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if config.offload == "parameters":
        zero["offload_param"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    bfloat16 = model.dtype == "bfloat16"
    settings = {
        # Micro-batches are ours: we set the accumulation boundary and normalise the loss.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "train_batch_size": ranks.size,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": config.max_grad_norm,
        "bf16": {"enabled": bfloat16, "check_grad_overflow": True},
        "steps_per_print": 2**31,
    }
    if bfloat16 and config.zero_stage >= 2:
        # A bfloat16 sum stops growing at 256 times its terms. DeepSpeed cannot do this at stage
        # 0, and at stage 1 takes an optimizer that has no offload.
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
    return settings


def _optimizer(config: LearnerConfig, network: PolicyNetwork) -> Any:
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    settings = {
        "lr": config.lr,
        "betas": config.betas,
        "eps": config.eps,
        "weight_decay": config.weight_decay,
    }
    if config.offload in ("optimizer", "parameters"):
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        with building_operators():  # compiled where it is first used
            return DeepSpeedCPUAdam(trained, **settings)
    return torch.optim.AdamW(trained, fused=True, **settings)


def _undo_first_step(optimizer: Any) -> None:
    """Undoes the step by which DeepSpeed's bfloat16 optimizer of stage 0 allocates AdamW's state.

    A step on zero gradients counts: AdamW's bias correction would take the first real update for
    the second and make it a quarter shorter. And it decays the weights.
    """
    for state in optimizer.optimizer.state.values():
        state["step"].zero_()
    for master, own in zip(optimizer.fp32_groups, optimizer.fp16_groups, strict=True):
        for weight, half in zip(master, own, strict=True):
            weight.data.copy_(half.data)
