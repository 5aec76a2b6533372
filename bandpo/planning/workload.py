"""The work of a training step, as its time depends on it."""

from __future__ import annotations

from dataclasses import dataclass

from hydra.utils import instantiate

from bandpo.config.schema import Config
from bandpo.config.sections.learner import MICRO_BATCH_TOKENS
from bandpo.data.benchmarks import benchmark_spec, expanded
from bandpo.model.architecture import Shape
from bandpo.planning.gpus import BYTES

PROMPT_TOKENS = 170
"""Tokens of a prompt of the paper's training set: about 560 characters with the instruction."""


@dataclass(frozen=True)
class Workload:
    """A step over all GPUs; `concurrency` is sequences per engine, `width` bytes per number.

    `old_share` is the share of samples whose old log-probabilities take a pass of their own,
    `passes_per_update` the work of an update in forward passes over its samples, `trained_share`
    the parameters with a gradient among all. `sharded` weights (ZeRO 3) are gathered for every
    micro-batch. With `lag` servers sample while the learner works.
    """

    samples: int
    updates: int
    prompt_tokens: float
    mean_tokens: float
    longest_tokens: int
    concurrency: int
    width: int = 2
    epochs: int = 1
    passes_per_update: int = 4
    old_share: float = 1.0
    has_reference: bool = True
    sharded: bool = True
    trained_share: float = 1.0
    lag: bool = False
    micro_batch_tokens: int = MICRO_BATCH_TOKENS["cuda"]

    @classmethod
    def of(
        cls, config: Config, shape: Shape, mean_tokens: float | None, engine_slots: int
    ) -> Workload:
        """A configuration's step; `mean_tokens` None: every completion is as long as it may be.

        An update is a forward pass over its samples, a backward pass of twice its work (once where
        adapters alone have gradients: then those of the inputs remain), and the forward pass again
        where activations are recomputed; every epoch repeats it. Samples of the first update get
        their old log-probabilities from the update itself.
        """
        rollout, learner = config.rollout, config.learner
        backward = 1 if learner.lora.rank else 2
        updates = learner.updates_per_rollout * learner.epochs_per_rollout
        single = learner.epochs_per_rollout == 1
        return cls(
            samples=rollout.prompts_per_step * rollout.group_size,
            updates=updates,
            prompt_tokens=min(PROMPT_TOKENS, config.data.max_prompt_tokens),
            mean_tokens=min(mean_tokens or rollout.max_tokens, rollout.max_tokens),
            longest_tokens=rollout.max_tokens,
            concurrency=engine_slots,
            width=BYTES[config.model.dtype],
            epochs=learner.epochs_per_rollout,
            passes_per_update=1 + backward + bool(config.model.gradient_checkpointing),
            old_share=1 - 1 / updates if single else 1.0,
            has_reference=needs_reference(config),
            sharded=learner.zero_stage == 3,
            trained_share=trained_parameters(config, shape) / shape.parameters,
            lag=rollout.lag > 0,
            micro_batch_tokens=learner.micro_batch_on("cuda"),
        )

    @property
    def length(self) -> float:
        """Mean tokens of a prompt with its completion."""
        return self.prompt_tokens + self.mean_tokens

    @property
    def tokens(self) -> float:
        """Tokens of all sequences of the step."""
        return self.samples * self.length


def trained_parameters(config: Config, shape: Shape) -> float:
    """The number of parameters that have a gradient and optimizer state.

    With LoRA of rank r on every linear layer about 2·r/hidden of the layers' own: an adapter of a
    matrix [o, i] has r·(o + i) of them instead of o·i.
    """
    rank = config.learner.lora.rank
    if not rank:
        return shape.parameters
    layers = shape.matmul_parameters - shape.vocabulary * shape.hidden
    return 2 * rank / shape.hidden * layers


def needs_reference(config: Config) -> bool:
    """Whether the loss has a KL term against the policy before training."""
    return bool(instantiate(config.method.loss).needs_reference)


def evaluation_samples(config: Config) -> int:
    """Completions of one evaluation; benchmarks of unknown size count as 100 problems."""
    sizes = [benchmark_spec(spec).size or 100 for spec in expanded(config.eval.benchmarks)]
    return sum(sizes) * config.eval.n
