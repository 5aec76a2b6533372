"""The sizes of a network that memory and time depend on, without its weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from bandpo.config.schema import ModelConfig
from bandpo.errors import UserError
from bandpo.model import embedded
from bandpo.model.source import embedded_recipe
from bandpo.model.tying import as_its_files_are, shares_head

# What the config.json of the paper's models says, so that a plan needs no network.
_QWEN2 = {"model_type": "qwen2", "vocab_size": 151_936, "tie_word_embeddings": False}
KNOWN: dict[str, dict[str, Any]] = {
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": {
        **_QWEN2,
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
    },
    "Qwen/Qwen2.5-3B-Instruct": {
        **_QWEN2,
        "tie_word_embeddings": True,
        "hidden_size": 2048,
        "intermediate_size": 11_008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
    },
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": {
        **_QWEN2,
        "vocab_size": 152_064,
        "hidden_size": 3584,
        "intermediate_size": 18_944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
    },
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B": {
        "model_type": "llama",
        "vocab_size": 128_256,
        "tie_word_embeddings": False,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
}


@dataclass(frozen=True)
class Shape:
    """The sizes of a network; `kv_width` and `attention_width` are heads × size of a head.

    `matmul_parameters` are those that every token is multiplied with: all but an input embedding
    that is not the output's as well.
    """

    parameters: int
    matmul_parameters: int
    vocabulary: int
    layers: int
    hidden: int
    attention_width: int
    kv_width: int

    def forward_flops(self, length: float) -> float:
        """Floating-point operations a token of a causal sequence of `length` tokens.

        2 · matmul_parameters, and 4 · width · layers for each of the length/2 tokens that it
        attends to on average.
        """
        attention = 2 * self.layers * self.attention_width * length
        return 2 * self.matmul_parameters + attention

    def kv_bytes(self, width: int) -> int:
        """Bytes of a token in the KV cache at `width` bytes a number."""
        return self.layers * self.kv_width * width


def shape_of(model: ModelConfig) -> Shape:
    """Sizes from the model's config alone; weights are neither read nor made.

    The network is asked only about models that neither are a folder nor in `KNOWN`. Raises
    UserError where no config can be read.
    """
    if recipe := embedded_recipe(model.path, model.seed):
        return _shape(embedded.build_model(recipe, len(embedded.build_tokenizer())))
    return _shape_of_path(model.path, model.trust_remote_code)


@lru_cache(maxsize=16)
def _shape_of_path(path: str, trust_remote_code: bool) -> Shape:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    if path in KNOWN:
        config = AutoConfig.for_model(**KNOWN[path])
    else:
        try:
            config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        except (OSError, ValueError) as error:
            raise UserError(f"model.path={path}: no config could be read: {error}") from None
        if Path(path).is_dir():
            config.update(as_its_files_are(path, config))
    with torch.device("meta"):
        return _shape(AutoModelForCausalLM.from_config(config))


def _shape(network: Any) -> Shape:
    config = network.config
    heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    parameters = sum(parameter.numel() for parameter in network.parameters())
    embedding = 0 if shares_head(network) else config.vocab_size * config.hidden_size
    return Shape(
        parameters=parameters,
        matmul_parameters=parameters - embedding,
        vocabulary=config.vocab_size,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        attention_width=heads * head_size,
        kv_width=2 * head_size * (getattr(config, "num_key_value_heads", None) or heads),
    )


def token_bytes(model_config: Any, dtype: str) -> int:
    """Bytes of a token's keys and values in all layers of a transformers model."""
    config = model_config.get_text_config()
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    return 2 * config.num_hidden_layers * kv_heads * size * getattr(torch, dtype).itemsize
