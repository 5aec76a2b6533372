"""The learner: a policy under DeepSpeed ZeRO that scores samples and takes updates."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from bandpo.batching import Sample, sequence_cost, totals_of
from bandpo.config.schema import LearnerConfig, ModelConfig
from bandpo.errors import RunHalted, UserError
from bandpo.learner.adapter import save_adapter
from bandpo.learner.attention import layout_for
from bandpo.learner.export import write_policy
from bandpo.learner.layouts import Batch, micro_batches, split_to
from bandpo.learner.policy import PolicySource
from bandpo.learner.proof import prove_network, prove_packing
from bandpo.learner.shards import failing_last, loadable
from bandpo.loss import LossDiagnostics, LossOutput, PolicyLoss
from bandpo.model.agreement import TOLERANCE, own_logprobs
from bandpo.ranks.collectives import Ranks
from bandpo.types import BatchTotals
from bandpo.weight_sync import weight_stream

logger = logging.getLogger(__name__)

# Keeps a rank without samples in step with the others' collectives; its mask is 0.
_PLACEHOLDER = Sample((0,), (0,), 0.0, *torch.zeros(4, 1))


@dataclass(frozen=True)
class UpdateResult:
    """What one optimizer update did, the same on every rank.

    An update whose loss or gradient is not finite is refused: weights, optimizer state and
    schedule stay as they are, and `sick` names the samples, of all ranks, whose values are not
    finite. It may be empty: the gradient can overflow all the same.
    """

    loss: float
    grad_norm: float
    lr: float
    padding_frac: float = 0.0
    imbalance: float = 0.0
    refused: bool = False
    sick: tuple[str, ...] = ()


class _OutOfMemory(Exception):
    """A micro-batch did not fit on some rank; raised on all of them."""


class DeepSpeedLearner:
    """Holds the policy, its optimizer and, where the loss wants one, the frozen reference.

    Every method but `cost` is collective over the ranks.
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
        self.config, self.loss, self.ranks = config, loss, ranks
        self.layout, _ = layout_for(model.attention, config.packing)
        policy = PolicySource(config, model, model_path, temperature, ranks)
        self.engine, self.optimizer = policy.trained()
        self.reference: Any = None
        if loss.needs_reference and not self.has_adapter:
            self.reference = policy.frozen()
        self.diagnostics = LossDiagnostics(ranks.device)
        # Halved where memory does not suffice.
        self.micro_batch_tokens = config.micro_batch_on(ranks.device.type)
        # Called with the loss output of every micro-batch of an update that was taken.
        self.observers: list[Callable[[LossOutput], None]] = []
        self._prove(TOLERANCE[model.dtype])

    def _prove(self, tolerance: float) -> None:
        """Raises UserError where the model is not computed as transformers computes it."""
        in_training = partial(self.logprobs, training=True)
        prove_network(self.logprobs, in_training, self._own_logprobs, tolerance, self.lm.config)
        if self.config.packing:
            prove_packing(self.logprobs, tolerance, self.lm.config.get_text_config().vocab_size)

    def _own_logprobs(self, samples: Sequence[Sample]) -> list[list[float]]:
        self.engine.eval()
        return [own_logprobs(self.lm, s.prompt_ids, s.completion_ids) for s in samples]

    @property
    def lm(self) -> Any:
        """The transformers model inside."""
        return self.engine.module.lm

    @property
    def has_adapter(self) -> bool:
        """Whether a LoRA adapter is trained instead of all weights."""
        return self.config.lora.rank > 0

    def cost(self, length: int) -> float:
        """What a sequence of so many tokens costs an update, in tokens (`sequence_cost`)."""
        return sequence_cost(length, self.lm.config.get_text_config().hidden_size)

    def score(self, samples: Sequence[Sample]) -> None:
        """Fills in `old_logp` and `entropy` under the current weights."""
        self.engine.eval()
        for batch, logp, entropy in self._forward(self.engine, samples):
            for row, sample in enumerate(batch.samples):
                length = len(sample.completion_ids)
                sample.old_logp, sample.entropy = logp[row, :length], entropy[row, :length]

    def score_reference(self, samples: Sequence[Sample]) -> None:
        """Fills in `ref_logp`; nothing where the loss needs no reference."""
        if not self.loss.needs_reference:
            return
        with self._reference_policy() as network:
            for batch, logp, _ in self._forward(network, samples):
                for row, sample in enumerate(batch.samples):
                    sample.ref_logp = logp[row, : len(sample.completion_ids)]

    @contextmanager
    def _reference_policy(self) -> Iterator[Any]:
        """The frozen copy, or with an adapter the policy without it, which saves the copy."""
        if not self.has_adapter:
            yield self.reference
            return
        self.engine.eval()
        self.lm.disable_adapters()
        try:
            yield self.engine
        finally:
            self.lm.enable_adapters()

    def prepare(self, batches: Sequence[Sequence[Sample]]) -> None:
        """Scores the samples of a schedule of minibatches before its first update.

        Samples that only the first minibatch holds are left out: they are on policy when their
        turn comes, and the update's own forward pass gives their old log-probabilities. So are
        those of an older policy, whose log-probabilities under it only the engine knows.
        """
        self.score([sample for sample in _distinct(batches[1:]) if sample.old_logp is None])
        self.score_reference(_distinct(batches))

    def logprobs(self, samples: Sequence[Sample], training: bool = False) -> list[list[float]]:
        """Log-probabilities at temperature 1 under the current weights, in order of the samples.

        With `training` as an update would compute them, which makes no difference.
        """
        self.engine.train(training)
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
    ) -> Iterator[tuple[Batch, Tensor, Tensor]]:
        left = dict.fromkeys(samples)
        while True:
            try:
                for chunk, weightless in self._in_step(list(left)):
                    with self._agreed_on_memory(self._forward_is_local):
                        batch = self.layout.of(chunk, self.ranks.device, weightless)
                        logp, entropy = network(*batch.arguments)
                    if not weightless:
                        yield batch, logp.cpu(), entropy.cpu()
                        for sample in chunk:
                            del left[sample]
                return
            except _OutOfMemory:
                self._halve_micro_batches(list(left))

    def _in_step(self, samples: Sequence[Sample]) -> list[tuple[list[Sample], bool]]:
        """Micro-batches (samples, weightless), padded to the same number on every rank.

        ZeRO 2 and 3 communicate in every pass: a rank with fewer would leave the others waiting.
        """
        mine = micro_batches(samples, self.micro_batch_tokens, self.layout)
        most = int(self.ranks.max(torch.tensor(len(mine), device=self.ranks.device)))
        mine = split_to(mine, most)
        spare = samples[:1] or [_PLACEHOLDER]
        filler = [([spare[0]], True)] * (most - len(mine))
        return [(batch, False) for batch in mine] + filler

    def update(self, samples: Sequence[Sample], step: int) -> UpdateResult | None:
        """One optimizer update on the samples of all ranks; None when no rank has any.

        The loss is normalised by the counts of the whole optimizer batch. DeepSpeed averages
        gradients over ranks, so that each rank's share is scaled by the number of ranks. Where a
        micro-batch does not fit into memory, the update starts again with smaller ones.
        """
        totals = self._global_totals(samples)
        if totals.tokens == 0:
            return None
        while True:
            try:
                return self._update(samples, step, totals)
            except _OutOfMemory:
                self._drop_gradients()
                self._halve_micro_batches(samples)

    def _update(self, samples: Sequence[Sample], step: int, totals: BatchTotals) -> UpdateResult:
        self.engine.train()
        local_loss = torch.zeros((), device=self.ranks.device)
        # What an update that is refused or started again has seen does not count.
        diagnostics, outputs = LossDiagnostics(self.ranks.device), []
        batches = self._in_step(samples)
        for index, (chunk, weightless) in enumerate(batches):
            last = index == len(batches) - 1
            self.engine.set_gradient_accumulation_boundary(last)
            with self._agreed_on_memory(self._forward_is_local):
                batch = self.layout.of(chunk, self.ranks.device, weightless)
                logp, entropy = self.engine(*batch.arguments)
                output = self.loss(batch.token_batch(logp, entropy, step), totals)
                if not weightless:
                    diagnostics.update(output)
            if self.observers and not weightless:
                outputs.append(output)
            local_loss += output.loss.detach()
            objective = output.loss * self.ranks.size
            if last:
                loss = float(self.ranks.sum(local_loss))
                lr = self.optimizer.param_groups[0]["lr"]
                # A loss that is not finite may have a gradient that is.
                objective = objective if math.isfinite(loss) else _poison(logp)
            with self._agreed_on_memory(self._backward_is_local(last)):
                self.engine.backward(objective)
            if not last:
                self.engine.step()
        norm = self._step()
        waste = (self._padding_frac(batches), self._imbalance(samples))
        if math.isfinite(loss) and math.isfinite(norm):
            self.diagnostics.merge(diagnostics)
            for output in outputs:
                for observe in self.observers:
                    observe(output)
            return UpdateResult(loss, norm, lr, *waste)
        sick = [name for names in self.ranks.gather(self._sick(samples)) for name in names]
        return UpdateResult(loss, norm, lr, *waste, refused=True, sick=tuple(sick))

    def _step(self) -> float:
        """Takes the update, or drops gradients that are not finite; returns their global norm.

        DeepSpeed's optimizers refuse such gradients by themselves, on all ranks together and with
        optimizer state and schedule untouched; where it wraps none (float32, stage 0) we do.
        """
        own_norm = self._gradient_norm_without_zero()
        if own_norm is not None and not math.isfinite(own_norm):
            self.engine.set_gradient_accumulation_boundary(False)
            self.engine.zero_grad()
        self.engine.step()
        norm = float(self.engine.get_global_grad_norm() or 0.0) if own_norm is None else own_norm
        if not math.isfinite(norm) and self.engine.was_step_applied():
            raise RuntimeError("DeepSpeed applied a gradient that is not finite: use a newer one")
        return norm

    def _drop_gradients(self) -> None:
        """Forgets what the passes so far have accumulated, with a gradient that is refused."""
        self.engine.set_gradient_accumulation_boundary(True)
        placeholder = self.layout.of([_PLACEHOLDER], self.ranks.device, weightless=True)
        logp, _ = self.engine(*placeholder.arguments)
        self.engine.backward(_poison(logp))
        self._step()

    def _sick(self, samples: Sequence[Sample]) -> list[str]:
        """This rank's samples that some value of is not finite: advantage or log-probabilities."""
        sick: list[str] = []
        for sample, logp in zip(samples, self.logprobs(samples), strict=True):
            values: list[Any] = [sample.advantage, logp, sample.rollout_logp, sample.old_logp]
            values += [sample.entropy, sample.ref_logp]
            if not all(_is_finite(value) for value in values if value is not None):
                sick.append(sample.id)
        return sick

    @property
    def _forward_is_local(self) -> bool:
        """Whether a rank that fails in a forward pass leaves no other waiting for it.

        ZeRO 3 gathers the layers' weights on the way.
        """
        return self.ranks.size == 1 or self.engine.zero_optimization_stage() < 3

    def _backward_is_local(self, last: bool) -> bool:
        """The same of a backward pass: ZeRO reduces on the way, stage 0 at the end of the last."""
        without_zero = self.engine.zero_optimization_stage() == 0
        return without_zero and (self.ranks.size == 1 or not last)

    @contextmanager
    def _agreed_on_memory(self, local: bool) -> Iterator[None]:
        """Raises _OutOfMemory on all ranks where the pass inside does not fit on one of them.

        Not where the pass communicates: the other ranks cannot be called back from there.
        """
        failed = False
        try:
            yield
        except torch.OutOfMemoryError as error:
            if not local:
                error.add_note(
                    f"Micro-batches of {self.micro_batch_tokens} tokens do not fit, and with "
                    f"ZeRO stage {self.engine.zero_optimization_stage()} on {self.ranks.size} "
                    "ranks they can not be halved at this point. Start again with "
                    f"learner.micro_batch_tokens={self.micro_batch_tokens // 2}: the run goes on "
                    "from its checkpoint with the same result."
                )
                raise
            failed = True
        if local and self.ranks.any(failed):
            raise _OutOfMemory

    def _halve_micro_batches(self, samples: Sequence[Sample]) -> None:
        """Goes on with micro-batches of half the size of the largest one, on all ranks.

        Raises RunHalted where the largest is already a single sample.
        """
        batches = micro_batches(samples, self.micro_batch_tokens, self.layout)
        longest = max(map(len, samples), default=0)
        largest = max((self.layout.size(batch) for batch in batches), default=0)
        sizes = torch.tensor([longest, largest], device=self.ranks.device)
        longest, largest = self.ranks.max(sizes).tolist()
        if largest <= longest:
            raise RunHalted(
                f"a single sample of {longest} tokens does not fit into memory: lower "
                "rollout.max_tokens or learner.logits_chunk, or set "
                "model.gradient_checkpointing=true, learner.zero_stage=3 or learner.offload"
            )
        self.micro_batch_tokens = largest // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        logger.warning(
            "out of memory in a micro-batch of %d tokens: from here on they hold at most %d "
            "(learner.micro_batch_tokens)",
            largest,
            self.micro_batch_tokens,
        )

    def _padding_frac(self, batches: Sequence[tuple[list[Sample], bool]]) -> float:
        """The share of the tokens computed, over all ranks, that belong to no sample."""
        computed = sum(self.layout.size(chunk) for chunk, _ in batches)
        # Prompts that are shared make a row shorter than its sequences.
        real = sum(
            min(self.layout.size(chunk), sum(map(len, chunk)))
            for chunk, weightless in batches
            if not weightless
        )
        counts = torch.tensor([real, computed], dtype=torch.float64, device=self.ranks.device)
        real, computed = self.ranks.sum(counts).tolist()
        return 1 - real / computed

    def _imbalance(self, samples: Sequence[Sample]) -> float:
        """The share of an update for which the ranks wait for the slowest: 1 − mean/max cost."""
        # A rank without samples sums to an integer: of another type than the others' tensors.
        cost = float(sum(self.cost(len(s)) for s in samples))
        mine = torch.tensor(cost, device=self.ranks.device)
        mean = float(self.ranks.sum(mine.clone())) / self.ranks.size
        return 1 - mean / float(self.ranks.max(mine))

    def _global_totals(self, samples: Sequence[Sample]) -> BatchTotals:
        mine = totals_of(samples)
        counts = torch.tensor([mine.sequences, mine.tokens], dtype=torch.float64)
        sequences, tokens = self.ranks.sum(counts.to(self.ranks.device)).tolist()
        return BatchTotals(sequences=sequences, tokens=tokens)

    def _gradient_norm_without_zero(self) -> float | None:
        """DeepSpeed reports no norm where it wraps no optimizer (float32, stage 0)."""
        if self.engine.zero_optimization_stage() > 0 or self.engine.bfloat16_enabled():
            return None
        gradients = [p.grad for p in self.engine.module.parameters() if p.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients))

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
        """Writes the engine's state (weights, optimizer, schedule) below `folder`; with LoRA the
        adapter's, and `adapter/` for peft.

        Raises OSError, when all ranks are done, on those that could not write their part.
        """
        with failing_last(self.engine):
            self.engine.save_checkpoint(
                str(folder),
                tag="engine",
                save_latest=False,
                exclude_frozen_parameters=self.has_adapter,
            )
        if self.has_adapter:
            save_adapter(self.lm, folder / "adapter", self.ranks.is_first)

    def load(self, folder: Path, saved_ranks: int) -> None:
        """Restores what `saved_ranks` ranks wrote: bitwise by as many, else up to rounding."""
        reshape = saved_ranks != self.ranks.size and self.config.zero_stage > 0
        with loadable(folder / "engine", self.ranks, reshape) as shards:
            self.engine._config.load_universal_checkpoint = reshape
            loaded, _ = self.engine.load_checkpoint(
                str(shards.parent), tag=shards.name, load_module_strict=not self.has_adapter
            )
        if loaded is None:
            raise UserError(
                f"{folder}/engine cannot be loaded with {self.ranks.size} rank(s) and ZeRO stage "
                f"{self.config.zero_stage}; use the settings it was saved with"
            )

    def save_hf(self, folder: Path, tokenizer: Any) -> None:
        """Writes the policy as a transformers folder with safetensors, on the first rank.

        Raises OSError there, when the other ranks have given their part.
        """
        write_policy(self.lm, self.weights(), folder, tokenizer, self.ranks.is_first)


def update_metrics(updates: Sequence[UpdateResult | None]) -> dict[str, float]:
    """Means over the updates that were taken, and how many were taken and refused."""
    made = [update for update in updates if update is not None]
    taken = [update for update in made if not update.refused]
    counts = {"learn/updates": float(len(taken)), "learn/skipped": float(len(made) - len(taken))}
    if not taken:
        return counts
    return {
        **counts,
        "loss/policy": fmean(update.loss for update in taken),
        "grad/norm": fmean(update.grad_norm for update in taken),
        "learn/lr": taken[-1].lr,
        "learn/padding_frac": fmean(update.padding_frac for update in taken),
        "learn/imbalance": fmean(update.imbalance for update in taken),
    }


def _poison(logp: Tensor) -> Tensor:
    """A loss whose gradient is finite nowhere, so that whatever it is added to is refused."""
    return logp.sum() * math.nan


def _is_finite(values: Tensor | Sequence[float] | float) -> bool:
    return bool(torch.as_tensor(values).isfinite().all())


def _distinct(batches: Sequence[Sequence[Sample]]) -> list[Sample]:
    return list(dict.fromkeys(sample for batch in batches for sample in batch))
