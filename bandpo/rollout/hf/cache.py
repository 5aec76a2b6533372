"""The key-value cache of `rollout=hf`, and the attention implementation that reads it.

A wave of groups decodes together, one token of each sample per forward pass. The cache stores a
prompt's keys and values once for all samples of its group, and theirs in place: memory grows with
P·(prompt + G·completion) tokens instead of P·G·(prompt + completion). Prompts of one length form a
`Block`, which needs no padding and no mask; a `Cache` is all blocks of a wave.

Importing this module registers `cached_attention` with transformers under the name `CACHED`. A
model loaded with it takes a `Block` (prefill) or a `Cache` (decoding) as `cache=…` of its forward
pass; without one it attends causally to the sequences it is given.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from bandpo.errors import UserError
from bandpo.model.features import refuse_dropped

CACHED = "sdpa_cached"
"""The name of `cached_attention` among transformers' attention implementations."""
MOST_ENDED = 0.25
"""Share of a block's samples that may have ended before they are removed, which copies the rest."""


@dataclass
class Block:
    """Keys and values, by layer, of prompts of one length and of their samples' tokens.

    Every prompt keeps equally many samples in the batch: where more of its samples have ended than
    of another prompt's, some ended ones stay.
    """

    rows: Tensor
    """Indices of these samples in the wave, [prompts, samples]."""
    room: int
    """Tokens that a sample may have."""
    prompts: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Keys and values of each layer, [prompts, kv heads, length, size]."""
    samples: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Keys and values of each layer, [prompts · samples, kv heads, room, size]."""

    @property
    def prompt_length(self) -> int:
        """Tokens of each prompt."""
        return self.prompts[0][0].shape[2]

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int
    ) -> Tensor:
        """Prefill: causal attention, query [prompts, heads, L, size] → [prompts, L, heads, size].

        Stores the layer's keys and values. Raises UserError for a prompt beyond the window.
        """
        if query.shape[2] > window:
            raise UserError(
                f"rollout=hf: {query.shape[2]} tokens at once are more than the model's attention "
                f"window of {window}; use rollout=vllm_local"
            )
        self.prompts.append((key, value))
        shape = (self.rows.numel(), key.shape[1], self.room)
        keys, values = (t.new_empty((*shape, t.shape[3])) for t in (key, value))
        self.samples.append((keys, values))
        groups = query.shape[1] > key.shape[1]
        output = scaled_dot_product_attention(
            query, key, value, is_causal=query.shape[2] > 1, scale=scale, enable_gqa=groups
        )
        return output.transpose(1, 2)

    def advance(
        self,
        layer: int,
        place: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        window: int,
    ) -> Tensor:
        """Decoding: the token at `place` of each sample, query [samples, heads, 1, size] → same.

        The queries of a prompt's samples are the rows of one matrix product, so that the prompt's
        keys and values are read once; query heads that share a key head are further rows. For
        single tokens matrix products are faster than fused attention.
        """
        prompts, m = self.rows.shape
        heads = key.shape[1]
        keys, values = self.samples[layer]
        keys[:, :, place], values[:, :, place] = key[:, :, 0], value[:, :, 0]
        first = max(0, self.prompt_length + place + 1 - window)  # within the window
        own = slice(max(0, first - self.prompt_length), place + 1)
        keys, values = (t[:, :, own].flatten(0, 1) for t in (keys, values))
        prompt_keys, prompt_values = (t[:, :, first:] for t in self.prompts[layer])

        # [samples · heads, g, …] → [prompts, heads, m·g, …], and back
        def of_prompts(rows: Tensor) -> Tensor:
            return rows.unflatten(0, (prompts, m, heads)).transpose(1, 2).flatten(2, 3)

        def of_samples(rows: Tensor) -> Tensor:
            return rows.unflatten(2, (m, -1)).transpose(1, 2).flatten(0, 2)

        rows = query.reshape(prompts * m * heads, -1, query.shape[-1])
        asked = of_samples(of_prompts(rows) @ prompt_keys.transpose(2, 3))
        scores = torch.cat([asked, torch.bmm(rows, keys.transpose(1, 2))], -1)
        weights = (scores.float() * scale).softmax(-1).to(values.dtype)
        of_prompt, of_own = weights.split([asked.shape[-1], values.shape[1]], -1)
        output = of_samples(of_prompts(of_prompt) @ prompt_values)
        return torch.baddbmm(output, of_own, values).view(*query.shape[:-1], -1)

    def drop(self, ended: Tensor) -> Tensor:
        """Removes samples that have ended, once they are many; the batch indices that are kept."""
        prompts, m = self.rows.shape
        unfinished = ~ended[self.rows]
        most = int(unfinished.sum(1).max())
        left = unfinished.any(1).nonzero().flatten()
        if len(left) * most >= (1 - MOST_ENDED) * prompts * m:
            return torch.arange(prompts * m, device=ended.device)
        order = unfinished[left].int().argsort(dim=1, descending=True, stable=True)[:, :most]
        kept = (left[:, None] * m + order).flatten()
        self.rows = self.rows.flatten()[kept].view(len(left), most)
        self.prompts = [(keys[left], values[left]) for keys, values in self.prompts]
        self.samples = [(keys[kept], values[kept]) for keys, values in self.samples]
        return kept


class Cache:
    """The blocks of a wave, which decode together."""

    def __init__(self) -> None:
        self.length = 0  # tokens of every sample after its prompt
        self.blocks: list[Block] = []

    @property
    def count(self) -> int:
        """Samples of all blocks."""
        return sum(block.rows.numel() for block in self.blocks)

    @property
    def rows(self) -> Tensor:
        """Indices in the wave of the samples in the batch, in its order."""
        return torch.cat([block.rows.flatten() for block in self.blocks])

    def positions(self) -> Tensor:
        """Positions of the next tokens in their sequences, [samples, 1]."""
        places = [
            torch.full_like(block.rows.flatten(), block.prompt_length + self.length)
            for block in self.blocks
        ]
        return torch.cat(places)[:, None]

    def drop(self, ended: Tensor) -> Tensor:
        """`Block.drop` on every block, and empty blocks removed; the batch indices kept."""
        kept, start = [], 0
        for block in self.blocks:
            size = block.rows.numel()
            kept.append(start + block.drop(ended))
            start += size
        self.blocks = [block for block in self.blocks if block.rows.numel()]
        return torch.cat(kept)

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int
    ) -> Tensor:
        """Decoding: query [samples, heads, 1, size] → [samples, 1, heads, size]."""
        sizes = [block.rows.numel() for block in self.blocks]
        pieces = zip(query.split(sizes), key.split(sizes), value.split(sizes), strict=True)
        outputs = [
            block.advance(layer, self.length, *piece, scale, window)
            for block, piece in zip(self.blocks, pieces, strict=True)
        ]
        return torch.cat(outputs).transpose(1, 2)


def cached_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    cache: Block | Cache | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """An attention implementation of transformers: SDPA without padding, over a cache or not.

    Raises UserError for settings that it would ignore.
    """
    refuse_dropped(settings, "rollout=hf", "use rollout=vllm_local")
    del attention_mask  # transformers makes none for an implementation it does not know
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    window = sys.maxsize if sliding_window is None else sliding_window
    cache = Block(torch.empty(0, 0), 0) if cache is None else cache
    layer: Any = module.layer_idx
    return cache.attend(layer, query, key, value, scale, window), None


AttentionInterface.register(CACHED, cached_attention)
