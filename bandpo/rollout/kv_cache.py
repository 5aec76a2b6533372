"""What the keys and values of a token take."""

from __future__ import annotations

from typing import Any

import torch


def token_bytes(model_config: Any, dtype: str) -> int:
    """Bytes of a token's keys and values in all layers of a transformers model."""
    config = model_config.get_text_config()
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    return 2 * config.num_hidden_layers * kv_heads * size * getattr(torch, dtype).itemsize
