"""How long a step takes on a cluster: a stated model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from hydra.utils import instantiate

from bandpo.config.schema import MICRO_BATCH_TOKENS, Config, ModelConfig
from bandpo.data.benchmarks import benchmark_spec
from bandpo.model.architecture import Shape
from bandpo.planning.gpus import BYTES, CARDS, Cluster

# Prompts of the paper's training set, about 560 characters with the instruction, as tokens.
PROMPT_TOKENS = 170


@dataclass(frozen=True)
class Workload:
    """What a step does, over all cards."""

    samples: int
    updates: int
    prompt_tokens: float
    mean_tokens: float
    longest_tokens: int
    concurrency: int
    width: int = 2
    passes_an_update: int = 4
    old_share: float = 1.0
    has_reference: bool = True
    micro_batch_tokens: int = MICRO_BATCH_TOKENS["cuda"]

    @classmethod
    def of(cls, config: Config, mean_tokens: float | None, engine_slots: int) -> Workload:
        """A configuration's step; `mean_tokens` None: every completion is as long as it may be.

        An update is one forward pass, a backward pass of twice its work, and the forward pass
        again where activations are recomputed; samples of the first update get their old
        log-probabilities from the update itself.
        """
        rollout, learner = config.rollout, config.learner
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
            passes_an_update=4 if config.model.gradient_checkpointing else 3,
            old_share=1 - 1 / updates if single else 1.0,
            has_reference=needs_reference(config),
            micro_batch_tokens=learner.micro_batch_on("cuda"),
        )

    @property
    def length(self) -> float:
        """Mean tokens of a prompt with its completion."""
        return self.prompt_tokens + self.mean_tokens

    @property
    def tokens(self) -> float:
        """Of all sequences of a step."""
        return self.samples * self.length


@dataclass(frozen=True)
class Rates:
    """What data sheets do not say."""

    learner_efficiency: float  # share of a card's FLOP/s that the learner's passes reach
    engine_overhead: float  # seconds of a decoding step beyond the data sheet's
    answers_per_s: float  # verified, by a rank's workers


PERFECT = Rates(learner_efficiency=1.0, engine_overhead=0.0, answers_per_s=float("inf"))


def step_seconds(shape: Shape, work: Workload, cluster: Cluster, rates: Rates) -> dict[str, float]:
    """Seconds of a step by phase: generation, old_logprob, reference, update, reward, sync.

    A learner pass takes the longer of its arithmetic and, where weights are sharded, of gathering
    them for every micro-batch. The reward is verified while others are generated; it is told
    apart here because the release's log does.
    """
    card, ranks = cluster.card, cluster.count
    one_pass = shape.forward_flops(work.length) * work.tokens / ranks
    arithmetic = one_pass / (card.flops * rates.learner_efficiency)
    rank_tokens = work.tokens / ranks
    gathers = max(1.0, rank_tokens / work.micro_batch_tokens)
    in_update = max(work.updates, gathers)
    gather = _gather_seconds(shape, work.width, cluster)
    return {
        "generation": _generation_seconds(shape, work, cluster, rates),
        "old_logprob": work.old_share * max(arithmetic, gathers * gather),
        "reference": work.has_reference * max(arithmetic, gathers * gather),
        # Gathered forward and backward; gradients are reduced with as many bytes again.
        "update": max(work.passes_an_update * arithmetic, 3 * in_update * gather),
        "reward": work.samples / ranks / rates.answers_per_s,
        "sync": gather + shape.parameters * work.width / card.bandwidth,
    }


def _gather_seconds(shape: Shape, width: int, cluster: Cluster) -> float:
    """All weights from the other cards to each card."""
    others = (cluster.count - 1) / cluster.count
    return others * shape.parameters * width / cluster.link


def _generation_seconds(shape: Shape, work: Workload, cluster: Cluster, rates: Rates) -> float:
    """Decoding steps until the longest completion is whole, with what each of them reads.

    Every step reads the weights and pays the engine's overhead; with more samples a card than
    slots, the rest waits for slots to become free. To it come reading the KV cache, and the
    arithmetic of all tokens.
    """
    card = cluster.card
    samples = work.samples / cluster.count
    slots = max(1, min(samples, work.concurrency))
    steps = work.longest_tokens + (samples - slots) * work.mean_tokens / slots
    a_step = rates.engine_overhead + shape.matmul_parameters * work.width / card.bandwidth
    context = work.prompt_tokens + work.mean_tokens / 2
    cache = samples * work.mean_tokens * context * shape.kv_bytes(work.width) / card.bandwidth
    arithmetic = samples * work.mean_tokens * shape.forward_flops(context) / card.flops
    return steps * a_step + cache + arithmetic


@dataclass(frozen=True)
class Log:
    """Seconds a step of a run that was measured, by phase, and what it was a run of."""

    cluster: Cluster
    tokens: float
    step: float
    phases: Mapping[str, float]
    mfu: float


# BandPO's release: Qwen2.5-3B, 8 cards of about 140 GB, groups of 16 (its own training log).
RELEASE_LOG = Log(
    cluster=Cluster(8, CARDS["H200"]),
    tokens=3.55e6,
    step=108.0,
    phases={
        "generation": 37.0,
        "old_logprob": 12.5,
        "reference": 12.0,
        "update": 42.0,
        "reward": 1.0,
    },
    mfu=0.24,
)
RELEASE_MODEL_CONFIG = ModelConfig.model_validate(
    {"path": "Qwen/Qwen2.5-3B-Instruct", "dtype": "bfloat16"}
)


def release_workload() -> Workload:
    """The step that `RELEASE_LOG` measured, at its mean length; activations recomputed."""
    samples = 256 * 16
    return Workload(
        samples=samples,
        updates=4,
        prompt_tokens=PROMPT_TOKENS,
        mean_tokens=RELEASE_LOG.tokens / samples - PROMPT_TOKENS,
        longest_tokens=4096,
        concurrency=samples // RELEASE_LOG.cluster.count,
    )


def fitted_rates(shape: Shape) -> Rates:
    """The three rates that make the model say what the release's log says of three phases.

    `shape` is that of `RELEASE_MODEL_CONFIG`. Fitted: the learner's efficiency to the update, the
    engine's overhead to generation, answers a second to the reward. The log's other two phases
    and its MFU are not used.
    """
    work, log = release_workload(), RELEASE_LOG
    ideal = step_seconds(shape, work, log.cluster, PERFECT)
    return Rates(
        learner_efficiency=ideal["update"] / log.phases["update"],
        engine_overhead=(log.phases["generation"] - ideal["generation"]) / work.longest_tokens,
        answers_per_s=work.samples / log.cluster.count / log.phases["reward"],
    )


def evaluation_samples(config: Config) -> int:
    """Completions of one evaluation; benchmarks of unknown size count as 100 problems."""
    sizes = [benchmark_spec(spec).size or 100 for spec in config.eval.benchmarks]
    return sum(sizes) * config.eval.n


def run_hours(
    config: Config, shape: Shape, work: Workload, cluster: Cluster, rates: Rates
) -> float:
    """A whole run: its steps, and an evaluation every so many of them."""
    trainer = config.trainer
    step = sum(step_seconds(shape, work, cluster, rates).values())
    evaluations = 2 + (trainer.steps - 1) // trainer.eval_every if trainer.eval_every else 2
    evaluation = replace(
        work, samples=evaluation_samples(config), longest_tokens=config.eval.max_tokens
    )
    generation = _generation_seconds(shape, evaluation, cluster, rates)
    return (trainer.steps * step + evaluations * generation) / 3600


def needs_reference(config: Config) -> bool:
    """Whether the loss has a KL term against the policy before training."""
    return bool(instantiate(config.method.loss).needs_reference)
