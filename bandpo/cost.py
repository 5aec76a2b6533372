"""How long a step takes on given cards, and what of their memory it fills: a stated model.

Rates are either a card's data sheet or fitted to the one log of the paper's setup that was
published (`RELEASE_LOG`); docs/cost-model.md says which, and what the model can be trusted with.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from hydra.utils import get_object, instantiate

from bandpo.architecture import Shape
from bandpo.config import MICRO_BATCH_TOKENS, Config, ModelConfig, longest_sequence
from bandpo.data.benchmarks import benchmark_spec
from bandpo.errors import UserError

GIB = 2**30
BYTES = {"float32": 4, "bfloat16": 2}
# Of a card's memory: CUDA's context, NCCL's buffers, fragmentation.
RESERVED = 0.06
# Prompts of the paper's training set, about 560 characters with the instruction, as tokens.
PROMPT_TOKENS = 170


@dataclass(frozen=True)
class Card:
    """A data sheet: memory, dense bfloat16 FLOP/s, bytes/s of memory and to its node's cards."""

    name: str
    memory_gib: float
    flops: float
    bandwidth: float
    link: float


CARDS = {
    card.name: card
    for card in (
        Card("A100-40", 40, 312e12, 1.56e12, 300e9),
        Card("A100", 80, 312e12, 2.04e12, 300e9),
        Card("H20", 96, 148e12, 4.0e12, 450e9),
        Card("H100", 80, 989e12, 3.35e12, 450e9),
        Card("H200", 140, 989e12, 4.8e12, 450e9),
        Card("B200", 180, 2250e12, 7.7e12, 900e9),
        Card("L40S", 48, 362e12, 0.864e12, 32e9),
    )
}
CARDS_A_NODE = 8
NETWORK = 50e9  # bytes/s a card between nodes: 400 Gbit/s


@dataclass(frozen=True)
class Cluster:
    """Equal cards, eight a node."""

    count: int
    card: Card

    @classmethod
    def of(cls, text: str) -> Cluster:
        """`8xH200`; raises UserError for a card that is not known."""
        found = re.fullmatch(r"(\d+)x([A-Za-z0-9-]+)", text)
        if found is None or found[2] not in CARDS or int(found[1]) < 1:
            raise UserError(
                f"cluster {text!r} is not <number>x<card>, such as 8xH200; "
                f"known cards: {', '.join(CARDS)}"
            )
        return cls(int(found[1]), CARDS[found[2]])

    @property
    def link(self) -> float:
        """Bytes/s between cards, the slowest way that a collective takes."""
        return self.card.link if self.count <= CARDS_A_NODE else min(self.card.link, NETWORK)

    def __str__(self) -> str:
        return f"{self.count}x{self.card.name}"


# --------------------------------------------------------------------------- time


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


# --------------------------------------------------------------------------- memory


@dataclass(frozen=True)
class Memory:
    """Estimated GiB of one card by part, when the learner works and when the engine does."""

    learner: Mapping[str, float]
    engine: Mapping[str, float]
    resident: float
    card: float
    kv_bytes: int

    @property
    def peak(self) -> float:
        """Of the two phases; a sleeping engine holds nothing."""
        return max(sum(self.learner.values()), self.resident + sum(self.engine.values()))

    def sequences(self, tokens: float) -> float:
        """How many sequences of so many tokens the engine's KV cache holds."""
        return self.engine["KV cache"] * GIB / (tokens * self.kv_bytes)

    def shortage(self, longest: int) -> str | None:
        """Why a run whose longest sequence has so many tokens does not fit; None where it does."""
        learner = sum(self.learner.values())
        usable = f"of {self.card:.0f} GiB usable"
        if learner > self.card:
            return f"the learner needs {learner:.0f} {usable}"
        if self.peak > self.card:
            return (
                f"while the engine generates, {self.peak:.0f} {usable} are taken, "
                f"{self.resident:.0f} of them by the learner"
            )
        if self.sequences(longest) < 1:
            return f"the engine's KV cache does not hold one sequence of {longest} tokens"
        return None


def needs_reference(config: Config) -> bool:
    """Whether the loss has a KL term against the policy before training."""
    return bool(instantiate(config.method.loss).needs_reference)


def trained_parameters(config: Config, shape: Shape) -> float:
    """Parameters that have a gradient and optimizer state.

    With LoRA of rank r on every linear layer about 2·r/hidden of the layers' own: an adapter of a
    matrix [o, i] has r·(o + i) of them instead of o·i.
    """
    rank = config.learner.lora.rank
    if not rank:
        return shape.parameters
    layers = shape.matmul_parameters - shape.vocabulary * shape.hidden
    return 2 * rank / shape.hidden * layers


def learner_memory(
    config: Config, shape: Shape, ranks: int, device: Literal["cuda", "cpu"]
) -> dict[str, float]:
    """Estimated GiB of the learner on one rank by part.

    Weights, gradients and AdamW's two moments (with a float32 master copy under bfloat16) are
    sharded as the ZeRO stage says; with LoRA they are the adapters', and the reference is the
    model without them. Activations: 34 bytes a hidden number and token of bfloat16
    (Korthikanti et al., Reducing Activation Recomputation, without attention's own, which
    fused kernels do not keep) in every layer, or one hidden state a layer and one layer's worth
    where they are recomputed. Logits are those of one chunk, three times in float32.
    """
    learner, width = config.learner, BYTES[config.model.dtype]
    stage, trained = learner.zero_stage, trained_parameters(config, shape)
    master = 4 if config.model.dtype == "bfloat16" else 0
    in_layer = 17 * shape.hidden * width
    recomputed = config.model.gradient_checkpointing
    kept = shape.layers * (shape.hidden * width if recomputed else in_layer)
    tokens = max(learner.micro_batch_on(device), longest_sequence(config))
    on_gpu = learner.offload == "none"
    parts = {
        "weights": shape.parameters * width / (ranks if stage == 3 else 1),
        # In shards they are added up in float32.
        "gradients": trained * 4 / ranks if stage >= 2 else trained * width,
        "optimizer": on_gpu * trained * (8 + master) / (ranks if stage >= 1 else 1),
        "activations": tokens * (kept + (in_layer if recomputed else 0)),
        "logits": 3 * 4 * min(learner.logits_chunk, tokens) * shape.vocabulary,
    }
    if learner.offload == "parameters":
        parts["weights"] = 0.0
    if needs_reference(config) and not learner.lora.rank:
        parts["reference"] = shape.parameters * width / (ranks if stage == 3 else 1)
    return {name: size / GIB for name, size in parts.items()}


def card_memory(config: Config, shape: Shape, cluster: Cluster) -> Memory:
    """The memory of one of the cluster's cards, learner and engine taking turns on it.

    The engine takes `gpu_memory_utilization` of the card: its weights and, with all the rest, its
    KV cache. Servers are taken to have as many cards of their own, free of the learner.
    """
    learner = learner_memory(config, shape, cluster.count, "cuda")
    engine = config.rollout.engine
    share = float(engine.get("gpu_memory_utilization", 0.9))
    shards = int(engine.get("tensor_parallel_size", 1))
    weights = shape.parameters * BYTES[config.model.dtype] / GIB / shards
    apart = getattr(get_object(engine["_target_"]), "samples_apart", False)
    kept = () if apart else ("weights", "gradients", "optimizer", "reference")
    return Memory(
        learner=learner,
        engine={
            "engine weights": weights,
            "KV cache": share * cluster.card.memory_gib - weights,
        },
        resident=sum(learner.get(part, 0.0) for part in kept),
        card=cluster.card.memory_gib * (1 - RESERVED),
        kv_bytes=shape.kv_bytes(BYTES[config.model.dtype]),
    )


def machine_memory(config: Config, shape: Shape, ranks: int, gib: float) -> Memory:
    """One rank's part of a machine without cards, where learner and engine stay side by side.

    The KV cache is that of all concurrent sequences at full length.
    """
    learner, width = learner_memory(config, shape, ranks, "cpu"), BYTES[config.model.dtype]
    samples = config.rollout.prompts_per_step * config.rollout.group_size // ranks
    concurrent = min(samples, int(config.rollout.engine.get("max_num_seqs", samples)))
    cache = concurrent * longest_sequence(config) * shape.kv_bytes(width)
    return Memory(
        learner=learner,
        engine={
            "engine weights": shape.parameters * width / GIB,
            "KV cache": cache / GIB,
        },
        resident=sum(learner.values()),
        card=gib / ranks,
        kv_bytes=shape.kv_bytes(width),
    )


def checkpoint_gib(config: Config, shape: Shape) -> float:
    """The checkpoints that a run keeps: what is trained, its optimizer, and hf/."""
    width = BYTES[config.model.dtype]
    master = 4 if config.model.dtype == "bfloat16" else 0
    own = trained_parameters(config, shape) * (width + 8 + master)
    return config.trainer.keep_checkpoints * (own + shape.parameters * width) / GIB


@dataclass(frozen=True)
class Forecast:
    """What a run takes on a cluster; `shortage` says why it does not fit and what to change."""

    cluster: Cluster
    work: Workload
    memory: Memory
    seconds: Mapping[str, float]
    hours: float
    shortage: str | None

    @property
    def step(self) -> float:
        """Seconds."""
        return sum(self.seconds.values())


def forecast(
    config: Config, shape: Shape, cluster: Cluster, rates: Rates, mean_tokens: float | None = None
) -> Forecast:
    """Memory and time of a run; `mean_tokens` is the expected completion, None: the longest."""
    memory = card_memory(config, shape, cluster)
    shortage = memory.shortage(longest_sequence(config))
    if shortage:
        shortage = f"{shortage}; {remedies(config, shape, cluster)}"
    slots = int(config.rollout.engine.get("max_num_seqs", 256))
    live = PROMPT_TOKENS + (mean_tokens or config.rollout.max_tokens)
    work = Workload.of(config, mean_tokens, min(slots, int(memory.sequences(live))))
    seconds = step_seconds(shape, work, cluster, rates)
    hours = run_hours(config, shape, work, cluster, rates)
    return Forecast(cluster, work, memory, seconds, hours, shortage)


def remedies(config: Config, shape: Shape, cluster: Cluster) -> str:
    """Overrides under which the run would fit, the cheapest first; or that none was found."""
    chosen: dict[str, Any] = {}
    for key, value in _candidates(config):
        section, _, name = key.partition(".")
        changed = _changed(config, section, name, value)
        if changed == config:
            continue
        config = changed
        chosen[key] = value
        if card_memory(config, shape, cluster).shortage(longest_sequence(config)) is None:
            words = " ".join(f"{key}={str(value).lower()}" for key, value in chosen.items())
            return f"it would fit with {words}"
    return "no setting was found under which it fits: take more or larger cards"


def _candidates(config: Config) -> Iterator[tuple[str, Any]]:
    yield "model.gradient_checkpointing", True
    yield "learner.zero_stage", 3
    tokens = config.learner.micro_batch_on("cuda")
    while tokens // 2 >= longest_sequence(config):
        tokens //= 2
        yield "learner.micro_batch_tokens", tokens
    for tenths in range(9, 1, -1):  # as much as fits, for the KV cache's sake
        yield "rollout.engine.gpu_memory_utilization", tenths / 10
    yield "learner.offload", "optimizer"
    yield "learner.offload", "parameters"


def _changed(config: Config, section: str, name: str, value: Any) -> Config:
    part = getattr(config, section)
    if name.startswith("engine."):
        update: dict[str, Any] = {"engine": {**part.engine, name.removeprefix("engine."): value}}
    else:
        update = {name: value}
    return config.model_copy(update={section: part.model_copy(update=update)})
