"""Settings that a GPU's memory decides where the user leaves them open."""

from __future__ import annotations

from typing import Any

from bandpo.config.schema import Config, longest_sequence
from bandpo.model.architecture import Shape
from bandpo.planning.gpus import RESERVED
from bandpo.planning.memory import (
    engine_memory,
    learner_memory,
    machine_memory,
    resident_memory,
)

MICRO_BATCH = "learner.micro_batch_tokens"
MICRO_BATCHES = (32_768, 16_384, 8192, 4096, 2048)
LARGEST_SHARE = 0.9
"""Of the GPU for the engine; vLLM's own default, for one that has it to itself."""


def fitted(config: Config, shape: Shape, gpu_gib: float, ranks: int) -> Config:
    """The configuration with what it leaves to the memory of a GPU of `gpu_gib` decided.

    Activations are recomputed where no micro-batch fits with them; of `learner.micro_batch_tokens`
    it takes the largest that leave the learner within the GPU, and larger ones use it no better.
    The engine's `gpu_memory_utilization` is what the learner's resident part and the probe leave.
    Values that the user has set stay.
    """
    usable = gpu_gib * (1 - RESERVED)
    choices = _choices(config)
    config = next(
        (c for c in choices if sum(learner_memory(c, shape, ranks, "cuda").values()) <= usable),
        choices[-1],
    )
    engine = config.rollout.engine
    if "gpu_memory_utilization" in engine and engine["gpu_memory_utilization"] is None:
        learner = learner_memory(config, shape, ranks, "cuda")
        taken = resident_memory(config, learner) + engine_memory(config, shape, learner)["probe"]
        share = min(LARGEST_SHARE, int(100 * (usable - taken) / gpu_gib) / 100)
        config = replaced(config, "rollout.engine.gpu_memory_utilization", max(share, 0.01))
    return config


def fitted_without_gpu(config: Config, shape: Shape, gib: float, ranks: int) -> Config:
    """The same for ranks that share a machine of `gib` GiB: whether activations are recomputed."""
    if config.model.gradient_checkpointing is not None:
        return config
    kept = replaced(config, "model.gradient_checkpointing", False)
    memory = machine_memory(kept, shape, ranks, gib)
    taken = sum(memory.learner.values()) + memory.engine["engine weights"]
    return replaced(config, "model.gradient_checkpointing", taken > memory.usable)


def _choices(config: Config) -> list[Config]:
    """The settings that memory decides between, the fastest first."""
    recomputed, tokens = config.model.gradient_checkpointing, config.learner.micro_batch_tokens
    longest = longest_sequence(config)
    sizes = [size for size in MICRO_BATCHES if size >= longest] or [longest]
    return [
        replaced(replaced(config, "model.gradient_checkpointing", r), MICRO_BATCH, size)
        for r in ([False, True] if recomputed is None else [recomputed])
        for size in (sizes if tokens is None else [tokens])
    ]


def replaced(config: Config, key: str, value: Any) -> Config:
    """The configuration with another value of `section.name` or `rollout.engine.name`."""
    section, _, name = key.partition(".")
    part = getattr(config, section)
    if name.startswith("engine."):
        update: dict[str, Any] = {"engine": {**part.engine, name.removeprefix("engine."): value}}
    else:
        update = {name: value}
    return config.model_copy(update={section: part.model_copy(update=update)})
