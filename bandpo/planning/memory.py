"""GPU memory of a run by part: a stated model (docs/cost-model.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from hydra.utils import get_object

from bandpo.config.schema import Config, engine_dtype, longest_sequence
from bandpo.model.architecture import Shape
from bandpo.planning.gpus import BYTES, GIB, RESERVED, Cluster
from bandpo.planning.workload import needs_reference, trained_parameters

BUCKET = 500_000_000
"""Gradients that DeepSpeed reduces at once (`reduce_bucket_size`, its default)."""
MOST_GATHERED = 1_000_000_000
"""Parameters that ZeRO 3 keeps gathered (`stage3_max_live_parameters`, its default)."""
ENGINE_TOKENS = 8192
"""Tokens that vLLM computes at once unless `max_num_batched_tokens` says otherwise."""
GRAPHS_GIB = 1.0
"""vLLM's CUDA graphs; its own estimate for models of 1 to 8 billion parameters is about this."""


@dataclass(frozen=True)
class Memory:
    """Estimated GiB of one GPU by part, while the learner works and while the engine does.

    `resident` is the learner's part that stays while the engine generates, `usable` the GPU's
    memory that may be filled, `kv_bytes` the bytes of a token in the KV cache.
    """

    learner: Mapping[str, float]
    engine: Mapping[str, float]
    resident: float
    usable: float
    kv_bytes: int

    @property
    def peak(self) -> float:
        """GiB of the larger of the two phases; a sleeping engine holds nothing."""
        return max(sum(self.learner.values()), self.resident + sum(self.engine.values()))

    def sequences(self, tokens: float) -> float:
        """How many sequences of `tokens` tokens the engine's KV cache holds."""
        return self.engine["KV cache"] * GIB / (tokens * self.kv_bytes)

    def shortage(self, longest: int) -> str | None:
        """Why a run with sequences of up to `longest` tokens does not fit; None where it does."""
        learner = sum(self.learner.values())
        usable = f"of {self.usable:.0f} GiB usable"
        if learner > self.usable:
            return f"the learner needs {learner:.0f} {usable}"
        if self.peak > self.usable:
            return (
                f"while the engine generates, {self.peak:.0f} {usable} are taken, "
                f"{self.resident:.0f} of them by the learner"
            )
        if self.sequences(longest) < 1:
            return f"the engine's KV cache does not hold one sequence of {longest} tokens"
        return None


def learner_memory(
    config: Config, shape: Shape, ranks: int, device: Literal["cuda", "cpu"]
) -> dict[str, float]:
    """Estimated GiB of the learner on one rank by part.

    Weights, gradients and AdamW's two moments (with a float32 master copy under bfloat16) are
    sharded as the ZeRO stage says; with LoRA they are the adapters', and the reference is the
    model without them. Activations are those of `Shape.layer_bytes` in every layer, or one hidden
    state per layer and one layer's worth where they are recomputed. Logits are those of one chunk,
    three times in float32; the head's gradient is summed over chunks in float32, beside a chunk's
    product and the sum in the weights' type. Buffers are DeepSpeed's: a bucket of gradients, and
    under ZeRO 3 the gathered weights that it keeps.
    """
    learner, width = config.learner, BYTES[config.model.dtype]
    stage, trained = learner.zero_stage, trained_parameters(config, shape)
    master = 4 if config.model.dtype == "bfloat16" else 0
    in_layer = shape.layer_bytes(width)
    gathered = min(shape.parameters, MOST_GATHERED) if stage == 3 else 0
    recomputed = config.model.gradient_checkpointing
    kept = shape.layers * (shape.hidden * width if recomputed else in_layer)
    tokens = max(learner.micro_batch_on(device), longest_sequence(config))
    on_gpu = learner.offload in ("none", "between_updates")
    head = shape.vocabulary * shape.hidden
    parts = {
        "weights": shape.parameters * width / (ranks if stage == 3 else 1),
        # In shards they are added up in float32.
        "gradients": trained * 4 / ranks if stage >= 2 else trained * width,
        "optimizer": on_gpu * trained * (8 + master) / (ranks if stage >= 1 else 1),
        "activations": tokens * (kept + (in_layer if recomputed else 0)),
        "logits": 3 * 4 * min(learner.logits_chunk, tokens) * shape.vocabulary,
        "head's gradient": 0.0 if learner.lora.rank else (4 + 2 * width) * head,
        "buffers": (min(trained, BUCKET) * (stage >= 1) + gathered) * width,
    }
    if learner.offload == "parameters":
        parts["weights"] = 0.0
    if needs_reference(config) and not learner.lora.rank:
        parts["reference"] = shape.parameters * width / (ranks if stage == 3 else 1)
    return {name: size / GIB for name, size in parts.items()}


def _has_own_gpus(config: Config) -> bool:
    """Whether the engine samples on other GPUs than the learner's."""
    return getattr(get_object(config.rollout.engine["_target_"]), "samples_apart", False)


def resident_memory(config: Config, learner: Mapping[str, float]) -> float:
    """GiB of the learner's parts that stay on the engine's GPU while it generates."""
    kept = ["weights", "gradients", "optimizer", "reference"]
    if config.learner.offload == "between_updates":
        kept.remove("optimizer")
    return 0.0 if _has_own_gpus(config) else sum(learner.get(part, 0.0) for part in kept)


def engine_memory(config: Config, shape: Shape, learner: Mapping[str, float]) -> dict[str, float]:
    """Estimated GiB beside the engine's KV cache: its weights, a pass, graphs, and the probe.

    A pass has the activations of its tokens and the logits of a token of every sequence. The probe
    is a pass of the learner without gradients, while the engine is awake.
    """
    engine, width = config.rollout.engine, BYTES[engine_dtype(config)]
    passes = int(engine.get("max_num_batched_tokens") or ENGINE_TOKENS)
    live = passes * (2 * shape.intermediate + 4 * shape.hidden) * width
    live += int(engine.get("max_num_seqs", 256)) * shape.vocabulary * 12
    shards = int(engine.get("tensor_parallel_size", 1))
    return {
        "engine weights": shape.parameters * width / GIB / shards,
        "engine activations": live / GIB,
        "CUDA graphs": 0.0 if engine.get("enforce_eager") else GRAPHS_GIB,
        "probe": 0.0 if _has_own_gpus(config) else 2 / 3 * learner["logits"],
    }


def gpu_memory(config: Config, shape: Shape, cluster: Cluster) -> Memory:
    """The memory of one of the cluster's GPUs, on which learner and engine take turns.

    The engine takes `gpu_memory_utilization` of the GPU, with all that its other parts leave for
    the KV cache. Servers are taken to have as many GPUs of their own, free of the learner.
    """
    learner = learner_memory(config, shape, cluster.count, "cuda")
    engine = engine_memory(config, shape, learner)
    share = float(config.rollout.engine.get("gpu_memory_utilization") or 0.9)
    others = sum(engine.values()) - engine["probe"]
    return Memory(
        learner=learner,
        engine={**engine, "KV cache": max(0.0, share * cluster.gpu.memory_gib - others)},
        resident=resident_memory(config, learner),
        usable=cluster.gpu.memory_gib * (1 - RESERVED),
        kv_bytes=shape.kv_bytes(BYTES[engine_dtype(config)]),
    )


def machine_memory(config: Config, shape: Shape, ranks: int, gib: float) -> Memory:
    """One rank's part of a machine without GPUs, where learner and engine stay side by side.

    The KV cache is that of all concurrent sequences at full length.
    """
    learner, width = learner_memory(config, shape, ranks, "cpu"), BYTES[engine_dtype(config)]
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
        usable=gib / ranks,
        kv_bytes=shape.kv_bytes(width),
    )


@dataclass(frozen=True)
class Disk:
    """GiB of the checkpoints that a run keeps, and of the weights among them (hf/)."""

    gib: float
    weights_gib: float

    def times(self, runs: int) -> Disk:
        """Those of so many runs."""
        return Disk(runs * self.gib, runs * self.weights_gib)


def checkpoint_disk(config: Config, shape: Shape) -> Disk:
    """The checkpoints that a run keeps: trained weights, optimizer state, and hf/."""
    width = BYTES[config.model.dtype]
    master = 4 if config.model.dtype == "bfloat16" else 0
    own = trained_parameters(config, shape) * (width + 8 + master) / GIB
    exported = shape.parameters * width / GIB
    kept = config.trainer.keep_checkpoints
    return Disk(kept * (own + exported), kept * exported)
