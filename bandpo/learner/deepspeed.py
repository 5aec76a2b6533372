"""The learner: a policy under DeepSpeed ZeRO that scores samples and takes updates."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from bandpo.batching import PaddedBatch, Sample, micro_batches, totals_of
from bandpo.config import LearnerConfig, ModelConfig
from bandpo.errors import UserError
from bandpo.learner.logprobs import PolicyNetwork
from bandpo.learner.ranks import Ranks
from bandpo.learner.shards import failing_last, loadable
from bandpo.loss import LossDiagnostics, LossOutput, PolicyLoss
from bandpo.types import BatchTotals
from bandpo.weight_sync import weight_stream

# Keeps a rank without samples in step with the others' collectives; its mask is 0.
_PLACEHOLDER = Sample((0,), (0,), 0.0, *torch.zeros(4, 1))


@dataclass(frozen=True)
class UpdateResult:
    """What one optimizer update did, the same on every rank."""

    loss: float
    grad_norm: float
    lr: float


class DeepSpeedLearner:
    """Holds the policy, its optimizer and, where the loss wants one, the frozen reference.

    Every method but `diagnostics` and `weight_version` is collective over the ranks.
    """

    def __init__(
        self,
        config: LearnerConfig,
        model: ModelConfig,
        model_path: str | Path,
        loss: PolicyLoss,
        ranks: Ranks,
        temperature: float = 1.0,
    ) -> None:
        import deepspeed

        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        self.config, self.loss, self.ranks = config, loss, ranks
        settings = _deepspeed_config(config, model, ranks)
        network = _load_network(model, model_path, temperature, config, settings)
        optimizer = _optimizer(config, network)
        self.engine, self.optimizer, _, _ = deepspeed.initialize(
            model=network,
            optimizer=optimizer,
            lr_scheduler=lambda optimizer: _warmup(config, optimizer),
            config=settings,
            dist_init_required=False,
        )
        self.reference: Any = None
        if loss.needs_reference:
            frozen = _load_network(model, model_path, temperature, config, settings)
            self.reference = _frozen(frozen, config, settings, ranks)
        self.diagnostics = LossDiagnostics(ranks.device)
        # Called with the loss output of every micro-batch of an update.
        self.observers: list[Callable[[LossOutput], None]] = []

    @property
    def lm(self) -> Any:
        """The transformers model inside."""
        return self.engine.module.lm

    def score(self, samples: Sequence[Sample]) -> None:
        """Fills in `old_logp` and `entropy` under the current weights."""
        self.engine.eval()
        for batch, logp, entropy in self._forward(self.engine, samples):
            for row, sample in enumerate(batch.samples):
                length = len(sample.completion_ids)
                sample.old_logp, sample.entropy = logp[row, :length], entropy[row, :length]

    def score_reference(self, samples: Sequence[Sample]) -> None:
        """Fills in `ref_logp`; nothing where the loss needs no reference."""
        if self.reference is None:
            return
        for batch, logp, _ in self._forward(self.reference, samples):
            for row, sample in enumerate(batch.samples):
                sample.ref_logp = logp[row, : len(sample.completion_ids)]

    def prepare(self, batches: Sequence[Sequence[Sample]]) -> None:
        """Scores the samples of a schedule of minibatches before its first update.

        Samples that only the first minibatch holds are left out: they are on policy when their
        turn comes, and the update's own forward pass gives their old log-probabilities. So are
        those of an older policy, whose log-probabilities under it only the engine knows.
        """
        self.score([sample for sample in _distinct(batches[1:]) if sample.old_logp is None])
        self.score_reference(_distinct(batches))

    def logprobs(self, samples: Sequence[Sample]) -> list[list[float]]:
        """Log-probabilities at temperature 1 under the current weights, in order of the samples."""
        self.engine.eval()
        with self.lm.get_output_embeddings().at_temperature(1.0):
            found = {
                id(sample): logp[row, : len(sample.completion_ids)].tolist()
                for batch, logp, _ in self._forward(self.engine, samples)
                for row, sample in enumerate(batch.samples)
            }
        return [found[id(sample)] for sample in samples]

    @torch.no_grad()
    def _forward(
        self, network: Any, samples: Sequence[Sample]
    ) -> Iterator[tuple[PaddedBatch, Tensor, Tensor]]:
        for chunk, weightless in self._in_step(samples):
            batch = PaddedBatch.of(chunk, self.ranks.device, weightless)
            logp, entropy = _apply(network, batch)
            if not weightless:
                yield batch, logp.cpu(), entropy.cpu()

    def _in_step(self, samples: Sequence[Sample]) -> list[tuple[list[Sample], bool]]:
        """Micro-batches (samples, weightless), padded to the same number on every rank.

        ZeRO 2 and 3 communicate in every pass: a rank with fewer would leave the others waiting.
        """
        mine = micro_batches(samples, self.config.micro_batch_tokens)
        most = int(self.ranks.max(torch.tensor(len(mine), device=self.ranks.device)))
        spare = samples[:1] or [_PLACEHOLDER]
        filler = [([spare[0]], True)] * (most - len(mine))
        return [(batch, False) for batch in mine] + filler

    def update(self, samples: Sequence[Sample], step: int) -> UpdateResult | None:
        """One optimizer update on the samples of all ranks; None when no rank has any.

        The loss is normalised by the counts of the whole optimizer batch. DeepSpeed averages
        gradients over ranks, so that each rank's share is scaled by the number of ranks.
        """
        totals = self._global_totals(samples)
        if totals.tokens == 0:
            return None
        self.engine.train()
        loss = torch.zeros((), device=self.ranks.device)
        batches = self._in_step(samples)
        for index, (chunk, weightless) in enumerate(batches):
            self.engine.set_gradient_accumulation_boundary(index == len(batches) - 1)
            batch = PaddedBatch.of(chunk, self.ranks.device, weightless)
            logp, entropy = _apply(self.engine, batch)
            output = self.loss(batch.token_batch(logp, entropy, step), totals)
            if not weightless:
                self.diagnostics.update(output)
                for observe in self.observers:
                    observe(output)
            self.engine.backward(output.loss * self.ranks.size)
            loss += output.loss.detach()
            if index == len(batches) - 1:
                lr = self.optimizer.param_groups[0]["lr"]
                own_norm = self._gradient_norm_without_zero()
            self.engine.step()
        norm = self.engine.get_global_grad_norm() if own_norm is None else own_norm
        return UpdateResult(float(self.ranks.sum(loss)), float(norm or 0.0), float(lr))

    def _global_totals(self, samples: Sequence[Sample]) -> BatchTotals:
        mine = totals_of(samples)
        counts = torch.tensor([mine.sequences, mine.tokens], dtype=torch.float64)
        sequences, tokens = self.ranks.sum(counts.to(self.ranks.device)).tolist()
        return BatchTotals(sequences=sequences, tokens=tokens)

    def _gradient_norm_without_zero(self) -> Tensor | None:
        """DeepSpeed reports no norm where it wraps no optimizer (float32, stage 0)."""
        if self.engine.zero_optimization_stage() > 0 or self.engine.bfloat16_enabled():
            return None
        gradients = [p.grad for p in self.engine.module.parameters() if p.grad is not None]
        return torch.nn.utils.get_total_norm(gradients)

    def take_metrics(self) -> dict[str, float]:
        """Metrics of all updates since the last call, over all ranks."""
        diagnostics, self.diagnostics = self.diagnostics, LossDiagnostics(self.ranks.device)
        self.ranks.sum(diagnostics.sums)
        self.ranks.max(diagnostics.maxima)
        return diagnostics.metrics()

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every weight under its checkpoint name; exhaust it on every rank."""
        return weight_stream(self.lm)

    def save(self, folder: Path) -> None:
        """Writes the engine's state (weights, optimizer, schedule) below `folder`.

        Raises OSError, when all ranks are done, on those that could not write their part.
        """
        with failing_last(self.engine):
            self.engine.save_checkpoint(str(folder), tag="engine", save_latest=False)

    def load(self, folder: Path, saved_ranks: int) -> None:
        """Restores what `saved_ranks` ranks wrote: bitwise by as many, else up to rounding."""
        reshape = saved_ranks != self.ranks.size and self.config.zero_stage > 0
        with loadable(folder / "engine", self.ranks, reshape) as shards:
            self.engine._config.load_universal_checkpoint = reshape
            loaded, _ = self.engine.load_checkpoint(str(shards.parent), tag=shards.name)
        if loaded is None:
            raise UserError(
                f"{folder}/engine cannot be loaded with {self.ranks.size} rank(s) and ZeRO stage "
                f"{self.config.zero_stage}; use the settings it was saved with"
            )

    def save_hf(self, folder: Path, tokenizer: Any) -> None:
        """Writes the policy as a transformers folder with safetensors, on the first rank.

        Raises OSError there, when the other ranks have given their part.
        """
        from huggingface_hub import save_torch_state_dict
        from safetensors import SafetensorError

        tied = self.lm.config.tie_word_embeddings
        weights = {
            name: tensor.cpu().clone()
            for name, tensor in self.weights()
            if self.ranks.is_first and not (tied and name == "lm_head.weight")
        }
        if not self.ranks.is_first:
            return
        folder.mkdir(parents=True, exist_ok=True)
        try:
            save_torch_state_dict(weights, str(folder))
        except SafetensorError as error:  # a full disk, said in its own way
            raise OSError(str(error)) from error
        self.lm.config.save_pretrained(folder)
        if self.lm.generation_config is not None:
            self.lm.generation_config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def update_metrics(updates: Sequence[UpdateResult | None]) -> dict[str, float]:
    """Means over the updates that were taken, and how many those were."""
    taken = [update for update in updates if update is not None]
    if not taken:
        return {"learn/updates": 0.0}
    return {
        "loss/policy": fmean(update.loss for update in taken),
        "grad/norm": fmean(update.grad_norm for update in taken),
        "learn/lr": taken[-1].lr,
        "learn/updates": float(len(taken)),
    }


def _distinct(batches: Sequence[Sequence[Sample]]) -> list[Sample]:
    return list(dict.fromkeys(sample for batch in batches for sample in batch))


def _apply(network: Any, batch: PaddedBatch) -> tuple[Tensor, Tensor]:
    return network(
        batch.input_ids, batch.attention_mask, batch.positions, batch.targets, batch.mask
    )


def _load_network(
    model: ModelConfig,
    model_path: str | Path,
    temperature: float,
    config: LearnerConfig,
    settings: dict[str, Any],
) -> PolicyNetwork:
    from transformers import AutoModelForCausalLM
    from transformers.integrations import HfDeepSpeedConfig
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()

    # While it lives, from_pretrained shards as it loads; without it each rank holds all weights.
    sharding = HfDeepSpeedConfig(settings) if config.zero_stage == 3 else None
    lm = AutoModelForCausalLM.from_pretrained(
        model_path,
        dtype=getattr(torch, model.dtype),
        attn_implementation=model.attention,
        trust_remote_code=model.trust_remote_code,
        use_safetensors=True,
    )
    del sharding
    if model.gradient_checkpointing:
        lm.gradient_checkpointing_enable({"use_reentrant": False})
    return PolicyNetwork(lm, temperature, config.logits_chunk)


def _frozen(
    network: PolicyNetwork, config: LearnerConfig, settings: dict[str, Any], ranks: Ranks
) -> Any:
    import deepspeed

    network.eval().requires_grad_(False)
    if config.zero_stage < 3:
        return network.to(ranks.device)
    keep = ("train_micro_batch_size_per_gpu", "train_batch_size", "zero_optimization", "bf16")
    engine, *_ = deepspeed.initialize(
        model=network, config={key: settings[key] for key in keep}, dist_init_required=False
    )
    engine.eval()  # returns nothing, unlike a module's
    return engine


def _deepspeed_config(config: LearnerConfig, model: ModelConfig, ranks: Ranks) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": config.zero_stage}
    if config.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if config.offload == "parameters":
        zero["offload_param"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {
        # Micro-batches are ours: we set the accumulation boundary and normalise the loss.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "train_batch_size": ranks.size,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": config.max_grad_norm,
        "bf16": {"enabled": model.dtype == "bfloat16"},
        "steps_per_print": 2**31,
    }


def _optimizer(config: LearnerConfig, network: PolicyNetwork) -> Any:
    settings = {
        "lr": config.lr,
        "betas": config.betas,
        "eps": config.eps,
        "weight_decay": config.weight_decay,
    }
    if config.offload != "none":
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(network.parameters(), **settings)
    return torch.optim.AdamW(network.parameters(), fused=True, **settings)


def _warmup(config: LearnerConfig, optimizer: Any) -> torch.optim.lr_scheduler.LambdaLR:
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda update: min(1.0, (update + 1) / (config.warmup_steps + 1))
    )
