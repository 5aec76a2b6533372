"""How long a step takes on given cards, and what of their memory it fills: a stated model.

Rates are either a card's data sheet or fitted to the one log of the paper's setup that was
published (`RELEASE_LOG`); docs/cost-model.md says which, and what the model can be trusted with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from hydra.utils import get_object

from bandpo.config.schema import Config, longest_sequence
from bandpo.model.architecture import Shape
from bandpo.planning.gpus import BYTES, GIB, RESERVED, Cluster
from bandpo.planning.time import needs_reference

# --------------------------------------------------------------------------- time


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
