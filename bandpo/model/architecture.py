"""The sizes of a network that memory and time depend on, without its weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from bandpo.config.sections.model import ModelConfig
from bandpo.disk.hub import asked_once
from bandpo.errors import UserError
from bandpo.model import embedded, smollm2
from bandpo.model.source import embedded_recipe, find_model
from bandpo.model.tying import as_its_files_are, shares_head

# From the config.json of the paper's models and of smollm2, so that a plan needs no network access.
_QWEN2 = {"model_type": "qwen2", "vocab_size": 151_936, "tie_word_embeddings": False}
KNOWN: dict[str, dict[str, Any]] = {
    smollm2.NAME: {
        "model_type": "llama",
        "vocab_size": 49_152,
        "tie_word_embeddings": True,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
    },
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": {
        **_QWEN2,
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "max_position_embeddings": 131_072,
    },
    "Qwen/Qwen2.5-3B-Instruct": {
        **_QWEN2,
        "tie_word_embeddings": True,
        "hidden_size": 2048,
        "intermediate_size": 11_008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32_768,
    },
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": {
        **_QWEN2,
        "vocab_size": 152_064,
        "hidden_size": 3584,
        "intermediate_size": 18_944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "max_position_embeddings": 131_072,
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
        "max_position_embeddings": 131_072,
    },
}


@dataclass(frozen=True)
class Shape:
    """The sizes of a network.

    `attention_width` is heads × size of a head, `kv_width` the numbers per token and layer in the
    KV cache. `matmul_parameters` are those that every token is multiplied with: all but an input
    embedding that is not the head too.
    """

    parameters: int
    matmul_parameters: int
    vocabulary: int
    layers: int
    hidden: int
    intermediate: int
    attention_width: int
    kv_width: int

    def forward_flops(self, length: float) -> float:
        """Floating-point operations per token of a causal sequence of `length` tokens.

        2 · matmul_parameters, and 4 · width · layers for each of the length/2 tokens that it
        attends to on average.
        """
        attention = 2 * self.layers * self.attention_width * length
        return 2 * self.matmul_parameters + attention

    def kv_bytes(self, width: int) -> int:
        """Bytes of a token in the KV cache at `width` bytes per number."""
        return self.layers * self.kv_width * width

    def layer_bytes(self, width: int) -> int:
        """Bytes that a layer's forward pass keeps per token for the backward pass.

        At `width` bytes per number, n of hidden, a of attention and i of the feed-forward layer:
        two RMS norms that keep a float32 and a scaled input, n (4 + width) each; the inputs of
        the projections, 2 n; queries, keys, values and the result of fused attention, 2 a + kv;
        and of a gated feed-forward layer both halves, the activation and the product, 4 i.
        """
        norms = 2 * self.hidden * (4 + width)
        attention = 2 * self.hidden + 2 * self.attention_width + self.kv_width
        return norms + width * (attention + 4 * self.intermediate)


def shape_of(model: ModelConfig) -> Shape:
    """Sizes from the model's config alone; weights are neither read nor made.

    The hub is asked only about models that are neither a folder nor in `KNOWN`. Raises UserError
    where no config can be read.
    """
    if recipe := embedded_recipe(model.path, model.seed):
        return _shape(embedded.build_model(recipe, len(embedded.build_tokenizer())))
    return _shape_of_config(_place(model.path), model.trust_remote_code)


def config_of(model: ModelConfig) -> Any:
    """transformers' configuration of the model, as `shape_of` reads it."""
    if recipe := embedded_recipe(model.path, model.seed):
        return embedded.build_model(recipe, len(embedded.build_tokenizer())).config
    return _config_of_path(_place(model.path), model.trust_remote_code)


def _place(path: str) -> str:
    """The folder of a model's config, absolute as the working folder may change, or the hub id."""
    folder = Path(path).expanduser()
    if path in KNOWN or not folder.is_dir():
        return path
    if not (folder / "config.json").is_file():
        folder = Path(find_model(path).path)  # of a run or of a checkpoint
    return str(folder.resolve())


@lru_cache(maxsize=16)
def _config_of_path(path: str, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig

    if path in KNOWN:
        return AutoConfig.for_model(**KNOWN[path])
    try:
        with asked_once(path):
            config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise UserError(f"model.path={path}: no config could be read: {error}") from None
    if Path(path).is_dir():
        config.update(as_its_files_are(path, config))
    return config


@lru_cache(maxsize=16)
def _shape_of_config(path: str, trust_remote_code: bool) -> Shape:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return _shape(AutoModelForCausalLM.from_config(_config_of_path(path, trust_remote_code)))


def _shape(network: Any) -> Shape:
    config = network.config
    parameters = sum(parameter.numel() for parameter in network.parameters())
    embedding = 0 if shares_head(network) else config.vocab_size * config.hidden_size
    return Shape(
        parameters=parameters,
        matmul_parameters=parameters - embedding,
        vocabulary=config.vocab_size,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
        attention_width=config.num_attention_heads * _head_size(config),
        kv_width=_kv_width(config),
    )


def _head_size(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _kv_width(config: Any) -> int:
    """Numbers per token that a layer keeps: keys and values of all their heads."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return 2 * heads * _head_size(config)


def token_bytes(model_config: Any, dtype: str) -> int:
    """Bytes of a token's keys and values in all layers of a transformers model."""
    config = model_config.get_text_config()
    return config.num_hidden_layers * _kv_width(config) * getattr(torch, dtype).itemsize
