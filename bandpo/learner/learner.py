"""The learner: a policy under DeepSpeed ZeRO that scores samples and takes updates."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bandpo.batching import NOTHING, Sample, sequence_cost, totals_of
from bandpo.config.sections.learner import LearnerConfig
from bandpo.config.sections.model import ModelConfig
from bandpo.learner.adapter import save_adapter
from bandpo.learner.attention import layout_for
from bandpo.learner.export import write_policy
from bandpo.learner.layouts import Batch
from bandpo.learner.memory import PLACEHOLDER, MicroBatches, OutOfMemory
from bandpo.learner.policy import PolicySource
from bandpo.learner.proof import probes_of, prove_network, prove_packing
from bandpo.learner.shards import load_engine, save_engine
from bandpo.learner.updates.entropy import EntropyControl
from bandpo.learner.updates.rates import scheduled
from bandpo.learner.updates.result import UpdateResult
from bandpo.learner.updates.statistic import PrePass
from bandpo.learner.updates.tally import Tally
from bandpo.loss import LossDiagnostics, LossOutput, PolicyLoss, vanishes_at_zero_advantage
from bandpo.loss.entropy import has_entropy_gradient
from bandpo.model.agreement import TOLERANCE, own_logprobs
from bandpo.ranks.collectives import Ranks
from bandpo.types import BatchTotals
from bandpo.weight_sync import weight_stream

FORWARD_SHARE = 1 / 3
"""Of an update's compute: a backward pass has the gradients of activations and of weights."""


class DeepSpeedLearner:
    """Holds the policy, its optimizer and, where the loss needs one, the frozen reference.

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
        rollouts: int | None = None,
        seed: int = 0,
    ) -> None:
        """`rollouts` are those of the run, which `learner.schedule` needs unless it is constant.

        Adapters start from the `seed`.
        """
        if rollouts is None and config.schedule != "constant":
            raise ValueError(f"learner.schedule={config.schedule} needs the rollouts of the run.")
        self.config, self.loss, self.ranks, self._rollouts = config, loss, ranks, rollouts
        self.layout, _ = layout_for(model.attention, config.packing)
        policy = PolicySource(config, model, model_path, temperature, ranks, seed)
        self.engine, self.optimizer, self._warm_up = policy.trained()
        self._hidden_size = self.lm.config.get_text_config().hidden_size
        self.reference: Any = None
        if loss.needs_reference and not self.has_adapter:
            self.reference = policy.frozen()
        self.diagnostics = LossDiagnostics(ranks.device)
        budget = config.micro_batch_on(ranks.device.type)
        self.micro_batches = MicroBatches(budget, self.layout, ranks, config.zero_stage)
        self._rests = False
        self._entropy = EntropyControl(loss, ranks)
        self._pre_pass = PrePass(self.micro_batches, self.layout, ranks)
        # Called with the loss output of every micro-batch of an update that was taken.
        self.observers: list[Callable[[LossOutput], None]] = []
        self._prove(TOLERANCE[model.dtype])

    def _prove(self, tolerance: float) -> None:
        """Raises UserError where the learner's log-probabilities are not those of transformers."""
        self.engine.eval()
        probes, in_training = probes_of(self.lm), partial(self.logprobs, training=True)
        own = self._own_logprobs
        prove_network(self.logprobs, in_training, own, probes, tolerance, self.lm.config)
        if self.config.packing:
            prove_packing(self.logprobs, probes, tolerance)

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
        """Cost of a sequence of `length` tokens in an update, in tokens (`sequence_cost`)."""
        return sequence_cost(length, self._hidden_size)

    def score(self, samples: Sequence[Sample]) -> None:
        """Fills in `old_logp` and `entropy` under the current weights."""
        for batch, logp, entropy in self._unchanged(samples):
            for sample, *values in zip(batch.samples, logp.cpu(), entropy.cpu(), strict=True):
                length = len(sample.completion_ids)
                sample.old_logp, sample.entropy = (row[:length] for row in values)

    def score_reference(self, samples: Sequence[Sample]) -> None:
        """Fills in `ref_logp`; does nothing where the loss needs no reference."""
        if not self.loss.needs_reference:
            return
        with self._reference_policy() as network:
            for batch, logp, _ in self._forward(network, samples):
                for sample, row in zip(batch.samples, logp.cpu(), strict=True):
                    sample.ref_logp = row[: len(sample.completion_ids)]

    @contextmanager
    def _reference_policy(self) -> Iterator[Any]:
        """The frozen copy, or with an adapter the policy without it, which needs no copy."""
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

        Samples that only the first minibatch holds are skipped: they are on policy in their
        update, whose own forward pass gives their old log-probabilities. So are those
        whose old policy is an older one (`take_behaviour_policy`), which only the engine knows.
        """
        unscored = [sample for sample in _distinct(batches[1:]) if sample.old_logp is None]
        self.score(unscored)
        self._pre_pass.scored = set(unscored)
        self.score_reference(_distinct(batches))

    def logprobs(self, samples: Sequence[Sample], training: bool = False) -> list[list[float]]:
        """Log-probabilities at temperature 1 under the current weights, in order of the samples.

        With `training` as an update computes them, which must make no difference (`prove_network`).
        """
        self.engine.train(training)
        with self.lm.get_output_embeddings().at_temperature(1.0):
            found = {
                id(sample): logp[row, : len(sample.completion_ids)].tolist()
                for batch, logp, _ in self._forward(self.engine, samples)
                for row, sample in enumerate(batch.samples)
            }
        return [found[id(sample)] for sample in samples]

    def _unchanged(self, samples: Sequence[Sample]) -> Iterator[tuple[Batch, Tensor, Tensor]]:
        """The samples under the current weights."""
        self.engine.eval()
        yield from self._forward(self.engine, samples)

    @torch.no_grad()
    def _forward(
        self, network: Any, samples: Sequence[Sample]
    ) -> Iterator[tuple[Batch, Tensor, Tensor]]:
        left = dict.fromkeys(samples)
        while True:
            try:
                batches = self.micro_batches.of(list(left))
                for index, batch in enumerate(self.micro_batches.laid_out(batches)):
                    with self.micro_batches.scoring(index, len(batches)):
                        batch = batch.to(self.ranks.device)
                        logp, entropy = network(*batch.arguments)
                    if not batch.weightless:
                        yield batch, logp, entropy
                        for sample in batch.samples:
                            del left[sample]
                return
            except OutOfMemory:
                self.micro_batches.halve(list(left))

    def update(self, samples: Sequence[Sample], step: int) -> UpdateResult | None:
        """One optimizer update on the samples of all ranks; None when no rank has any.

        The loss is normalised by the counts of the whole optimizer batch. DeepSpeed averages
        gradients over ranks, so each rank's share is scaled by the number of ranks. Where a
        micro-batch does not fit into memory, the update starts again with smaller ones.
        """
        totals = self._global_totals(samples)
        if totals.tokens == 0:
            return None
        self._reload()
        self._set_rate(step)
        loss = self._entropy.applied(self.loss)
        loss = self._pre_pass.informed(loss, samples, step, self._unchanged)
        self.lm.get_output_embeddings().entropy_gradient = has_entropy_gradient(loss)
        may_skip = vanishes_at_zero_advantage(loss)
        silent = [sample for sample in samples if may_skip and sample.advantage == 0]
        learning = [sample for sample in samples if not may_skip or sample.advantage != 0]
        while True:
            try:
                return self._update(loss, learning, silent, step, totals)
            except OutOfMemory:
                self._drop_gradients()
                self.micro_batches.halve(learning)

    def _set_rate(self, step: int) -> None:
        """Makes the learning rate that of the step: the warm-up's, on the schedule's share."""
        if self._rollouts is None or self.config.schedule == "constant":
            return
        share = scheduled(self.config, self._rollouts, step)
        rates = self._warm_up.get_last_lr()
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * share

    def _update(
        self,
        loss: PolicyLoss,
        learning: list[Sample],
        silent: list[Sample],
        step: int,
        totals: BatchTotals,
    ) -> UpdateResult:
        """One on samples with a gradient, and `silent` ones, which all other results count too."""
        tally = Tally(self.ranks.device, keep=bool(self.observers))
        for batch, logp, entropy in self._unchanged(silent):
            tally.add(loss(batch.token_batch(logp, entropy, step), totals))
        self.engine.train()
        # At least one pass: an update without a gradient still moves momentum and schedule.
        batches = self.micro_batches.of(learning, least=1)
        for index, batch in enumerate(self.micro_batches.laid_out(batches), start=1):
            last = index == len(batches)
            self.engine.set_gradient_accumulation_boundary(last)
            with self.micro_batches.forward(last):
                batch = batch.to(self.ranks.device)
                logp, entropy = self.engine(*batch.arguments)
                output = loss(batch.token_batch(logp, entropy, step), totals)
                tally.add(output, batch.weightless)
            objective = output.loss * self.ranks.size
            if last:
                self.ranks.sum(tally.loss)
                # A nonfinite loss may have a finite gradient: 0 times it poisons that.
                objective = objective + logp.sum() * (tally.loss * 0)
            with self.micro_batches.backward(last):
                self.engine.backward(objective)
            if not last:
                self.engine.step()
        lr = self.optimizer.param_groups[0]["lr"]
        norm, value = self._step(), float(tally.loss)
        waste = (self.micro_batches.padding_frac(batches), self._imbalance(learning, silent))
        if math.isfinite(value) and math.isfinite(norm):
            self._pre_pass.scored.clear()
            self.diagnostics.merge(tally.diagnostics)
            for output in tally.outputs:
                for observe in self.observers:
                    observe(output)
            return UpdateResult(value, norm, lr, *waste)
        found = chain.from_iterable(self.ranks.gather(self._nonfinite([*learning, *silent])))
        return UpdateResult(value, norm, lr, *waste, skipped=True, nonfinite=tuple(found))

    def _step(self) -> float:
        """Takes the update, or discards nonfinite gradients; returns their global norm.

        DeepSpeed's optimizers discard such gradients by themselves, on all ranks together and with
        optimizer state and schedule untouched; where it wraps none (float32, stage 0) this does.
        """
        own_norm = self._gradient_norm_without_zero()
        if own_norm is not None and not math.isfinite(own_norm):
            self.engine.set_gradient_accumulation_boundary(False)
            self.engine.zero_grad()
        self.engine.step()
        norm = float(self.engine.get_global_grad_norm() or 0.0) if own_norm is None else own_norm
        if not math.isfinite(norm) and self.engine.was_step_applied():
            raise RuntimeError("DeepSpeed applied a nonfinite gradient: use a newer version of it")
        return norm

    def rest(self) -> None:
        """Leaves the GPU's memory to the engine until the next update (`offload=between_updates`).

        Optimizer state and the float32 weights beside bfloat16 ones go to the CPU's memory.
        """
        if self.config.offload != "between_updates" or self._rests:
            return
        from deepspeed.runtime.zero.offload_config import OffloadStateTypeEnum as State

        on_gpu = self.ranks.device.type == "cuda"
        self.engine.offload_states({State.optim_states, State.hp_params}, pin_memory=on_gpu)
        self._rests = True

    def _reload(self) -> None:
        if self._rests:
            self.engine.reload_states()
            self._rests = False

    def _drop_gradients(self) -> None:
        """Discards the gradients accumulated so far, by adding one that is nonfinite."""
        self.engine.set_gradient_accumulation_boundary(True)
        placeholder = self.layout.of([PLACEHOLDER], self.ranks.device, weightless=True)
        logp, _ = self.engine(*placeholder.arguments)
        self.engine.backward(logp.sum() * math.nan)
        self._step()

    def _nonfinite(self, samples: Sequence[Sample]) -> list[str]:
        """This rank's samples with a nonfinite advantage, log-probability or entropy."""
        found: list[str] = []
        for sample, logp in zip(samples, self.logprobs(samples), strict=True):
            values: list[Any] = [sample.advantage, logp, sample.rollout_logp, sample.old_logp]
            values += [
                sample.entropy,
                sample.ref_logp,
                sample.weight,
                sample.pass_rate,
                sample.dual,
            ]
            if not all(_is_finite(value) for value in values if value is not None):
                found.append(sample.id)
        return found

    def _imbalance(self, learning: Sequence[Sample], silent: Sequence[Sample] = ()) -> float:
        """The share of an update that the ranks wait for the slowest: 1 − mean/max cost."""
        # A rank without samples sums to an integer, another type than the others' tensors.
        cost = float(sum(self.cost(len(s)) for s in learning))
        cost += FORWARD_SHARE * sum(self.cost(len(s)) for s in silent)
        mine = torch.tensor(cost, device=self.ranks.device)
        mean = float(self.ranks.sum(mine.clone())) / self.ranks.size
        return 1 - mean / float(self.ranks.max(mine))

    def _global_totals(self, samples: Sequence[Sample]) -> BatchTotals:
        """The counts that normalise the loss; 0 where no rank has a sample to compute."""
        mine = totals_of(samples)
        counts = torch.tensor([mine.sequences, mine.tokens, len(samples)], dtype=torch.float64)
        sequences, tokens, computed = self.ranks.sum(counts.to(self.ranks.device)).tolist()
        return BatchTotals(sequences, tokens) if computed else NOTHING

    def _gradient_norm_without_zero(self) -> float | None:
        """The norm where DeepSpeed wraps no optimizer and reports none (float32, stage 0)."""
        if self.engine.zero_optimization_stage() > 0 or self.engine.bfloat16_enabled():
            return None
        gradients = [p.grad for p in self.engine.module.parameters() if p.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients))

    def take_metrics(self) -> dict[str, float]:
        """Metrics of a rollout's updates, over all ranks, by their logged names.

        Called once per rollout: the coefficient of an entropy bonus may follow its entropy.
        """
        diagnostics, self.diagnostics = self.diagnostics, LossDiagnostics(self.ranks.device)
        self.ranks.sum(diagnostics.sums)
        self.ranks.max(diagnostics.maxima)
        metrics = diagnostics.metrics()
        return metrics | self._entropy.observed(metrics)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every weight under its checkpoint name; every rank must exhaust the stream."""
        return weight_stream(self.lm)

    def save(self, folder: Path) -> None:
        """Writes weights, optimizer and schedule into `folder`, with LoRA `adapter/` for peft too.

        Raises OSError, when all ranks are done, on those that could not write their part.
        """
        save_engine(self.engine, folder, trained_only=self.has_adapter)
        self._entropy.save(folder)
        if self.has_adapter:
            save_adapter(self.lm, folder / "adapter", self.ranks.is_first)

    def load(self, folder: Path, saved_ranks: int) -> None:
        """Restores what `saved_ranks` ranks wrote: bitwise on as many ranks, else up to rounding.

        Raises UserError for a checkpoint that these ranks cannot load.
        """
        load_engine(self.engine, folder, self.ranks, saved_ranks, trained_only=self.has_adapter)
        self._entropy.load(folder)

    def save_hf(self, folder: Path, tokenizer: Any) -> None:
        """Writes the policy as a transformers folder with safetensors, on the first rank.

        Raises OSError there, after the other ranks have given their part.
        """
        write_policy(self.lm, self.weights(), folder, tokenizer, self.ranks.is_first)


def _is_finite(values: Tensor | Sequence[float] | float) -> bool:
    return bool(torch.as_tensor(values).isfinite().all())


def _distinct(batches: Sequence[Sequence[Sample]]) -> list[Sample]:
    return list(dict.fromkeys(sample for batch in batches for sample in batch))
