"""`bandpo plan`: what a configuration means in prompts, samples, updates, tokens and memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from rich.console import Console
from rich.table import Table

from bandpo import embedded
from bandpo.config import Config, ModelConfig, compose, longest_sequence, world_size
from bandpo.errors import UserError
from bandpo.evaluation.model import embedded_recipe

GIB = 2**30
BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Shape:
    """The sizes of a network that its memory depends on."""

    parameters: int
    vocabulary: int
    layers: int
    hidden: int
    kv_width: int


def shape_of(model: ModelConfig) -> Shape:
    """Sizes from the model's config alone; weights are neither read nor made."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    if recipe := embedded_recipe(model.path, model.seed):
        network: Any = embedded.build_model(recipe, len(embedded.build_tokenizer()))
        config = network.config
    else:
        try:
            config = AutoConfig.from_pretrained(
                model.path, trust_remote_code=model.trust_remote_code
            )
        except (OSError, ValueError) as error:
            raise UserError(f"model.path={model.path}: no config could be read: {error}") from None
        with torch.device("meta"):
            network = AutoModelForCausalLM.from_config(config)
    heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return Shape(
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        vocabulary=config.vocab_size,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        kv_width=2 * head_size * (getattr(config, "num_key_value_heads", None) or heads),
    )


def memory_gib(config: Config, shape: Shape, ranks: int) -> dict[str, float]:
    """Estimated peak memory of one rank by part, in GiB.

    Weights, gradients and AdamW's two moments (with a float32 master copy under bfloat16) are
    sharded as the ZeRO stage says; activations count 2 floats of hidden size × 17 a token and
    layer, or one with gradient checkpointing; logits are those of one chunk, three times; the KV
    cache is that of the engine's concurrent sequences at full length.
    """
    learner, width = config.learner, BYTES[config.model.dtype]
    stage = learner.zero_stage
    master = 4 if config.model.dtype == "bfloat16" else 0
    on_gpu = learner.offload == "none"
    per_token = (
        shape.layers * shape.hidden * width * (1 if config.model.gradient_checkpointing else 34)
    )
    parts = {
        "weights": shape.parameters * width / (ranks if stage == 3 else 1),
        "gradients": shape.parameters * width / (ranks if stage >= 2 else 1),
        "optimizer": on_gpu * shape.parameters * (8 + master) / (ranks if stage >= 1 else 1),
        "activations": learner.micro_batch_tokens * per_token,
        "logits": 3 * 4 * min(learner.logits_chunk, learner.micro_batch_tokens) * shape.vocabulary,
        "engine weights": shape.parameters * width,
        "engine KV cache": _concurrent(config)
        * longest_sequence(config)
        * shape.layers
        * shape.kv_width
        * width,
    }
    if instantiate(config.method.loss).needs_reference:
        parts["reference"] = shape.parameters * width / (ranks if stage == 3 else 1)
    return {name: size / GIB for name, size in parts.items()}


def _concurrent(config: Config) -> int:
    samples = config.rollout.prompts_per_step * config.rollout.group_size // world_size()
    return min(samples, int(config.rollout.engine.get("max_num_seqs", samples)))


def plan(config: Config) -> Mapping[str, str]:
    """What follows from a configuration, as lines of a table."""
    rollout, learner, ranks = config.rollout, config.learner, world_size()
    samples = rollout.prompts_per_step * rollout.group_size
    updates = learner.updates_per_rollout * learner.epochs_per_rollout
    shape = shape_of(config.model)
    memory = memory_gib(config, shape, ranks)
    steps = config.trainer.steps
    benchmarks = ", ".join(map(_benchmark_name, config.eval.benchmarks))
    return {
        "run": str(Path(config.run.dir)),
        "model": f"{config.model.path}, {shape.parameters / 1e6:,.1f} M parameters, "
        f"{config.model.dtype}",
        "method": config.method.name,
        "engine": str(config.rollout.engine["_target_"]),
        "ranks": f"{ranks}, ZeRO stage {learner.zero_stage}",
        "a step": f"{rollout.prompts_per_step} prompts × {rollout.group_size} samples = "
        f"{samples:,} samples",
        "tokens a step": f"at most {samples * rollout.max_tokens:,} sampled",
        "updates a step": f"{updates} of {samples // learner.updates_per_rollout:,} samples",
        "in all": f"{steps:,} steps, {steps * samples:,} samples, {steps * updates:,} updates",
        "evaluation": f"{benchmarks or 'none'}, {config.eval.n} samples a problem, "
        f"every {config.trainer.eval_every or 'first and last'} step(s)",
        "checkpoints": f"every {config.trainer.checkpoint_every or 'last'} step(s)",
        "memory a rank": f"about {sum(memory.values()):.2f} GiB: "
        + ", ".join(f"{name} {size:.2f}" for name, size in memory.items()),
    }


def _benchmark_name(spec: str | Mapping[str, Any]) -> str:
    return spec if isinstance(spec, str) else str(spec.get("name"))


def main(argv: list[str]) -> int:
    """Prints the plan of `bandpo train` with the same overrides; loads no weights."""
    config = compose("train", argv, Config)
    table = Table(title="bandpo plan", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in plan(config).items():
        table.add_row(name, value)
    Console().print(table)
    return 0
