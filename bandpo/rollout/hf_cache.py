"""The key-value cache of `rollout=hf`: prompts once, completions in place."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from bandpo.errors import UserError
from bandpo.model.features import refuse_dropped

CACHED = "sdpa_cached"
MOST_ENDED = 0.25


@dataclass
class _Block:
    """Keys and values, by layer, of prompts of one length and of what their samples have added.

    Every prompt has as many samples in the batch. Where more of its own have ended than of
    another's, some of those that have stay with it.
    """

    rows: Tensor
    """Which of the wave's samples these are, [prompts, samples]."""
    room: int
    """For tokens of a sample."""
    prompts: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """[prompts, kv heads, length, size]"""
    samples: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """[prompts · samples, kv heads, room, size]"""

    @property
    def prompt_length(self) -> int:
        """Tokens of each prompt."""
        return self.prompts[0][0].shape[2]

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int
    ) -> Tensor:
        """The prompts themselves, causal; query [prompts, heads, L, size] → [prompts, L, …]."""
        if query.shape[2] > window:
            raise UserError(
                f"rollout=hf: {query.shape[2]} tokens at once are more than the model's attention "
                f"window of {window}; use rollout=vllm_local"
            )
        self.prompts.append((key, value))
        shape = (self.rows.numel(), key.shape[1], self.room, key.shape[3])
        self.samples.append((key.new_empty(shape), value.new_empty(shape)))
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
        """The token at `place` of each sample; query [samples, heads, 1, size] → the same.

        What the samples of a prompt ask of it are rows of one matrix product: its keys and values
        are read once. Query heads that share a key stand there like further samples. For one
        token matrix products are quicker than the fused attention.
        """
        prompts, m = self.rows.shape
        heads = key.shape[1]
        keys, values = self.samples[layer]
        keys[:, :, place], values[:, :, place] = key[:, :, 0], value[:, :, 0]
        first = max(0, self.prompt_length + place + 1 - window)  # that the window still sees
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
        return torch.baddbmm(output, of_own, values).view(query.shape)

    def drop(self, ended: Tensor) -> Tensor:
        """Takes out samples that have ended, once they are many; which of the batch are kept."""
        prompts, m = self.rows.shape
        going_on = ~ended[self.rows]
        most = int(going_on.sum(1).max())
        left = going_on.any(1).nonzero().flatten()
        if len(left) * most >= (1 - MOST_ENDED) * prompts * m:
            return torch.arange(prompts * m, device=ended.device)
        order = going_on[left].int().argsort(dim=1, descending=True, stable=True)[:, :most]
        kept = (left[:, None] * m + order).flatten()
        self.rows = self.rows.flatten()[kept].view(len(left), most)
        self.prompts = [(keys[left], values[left]) for keys, values in self.prompts]
        self.samples = [(keys[kept], values[kept]) for keys, values in self.samples]
        return kept


class _Cache:
    """The blocks of a wave, which advance together."""

    def __init__(self) -> None:
        self.length = 0  # tokens that every sample has beside its prompt
        self.blocks: list[_Block] = []

    @property
    def count(self) -> int:
        """Samples so far."""
        return sum(block.rows.numel() for block in self.blocks)

    @property
    def rows(self) -> Tensor:
        """The samples in the batch, in its order."""
        return torch.cat([block.rows.flatten() for block in self.blocks])

    def positions(self) -> Tensor:
        """Where the tokens that come next stand in their sequences, [samples, 1]."""
        places = [
            torch.full_like(block.rows.flatten(), block.prompt_length + self.length)
            for block in self.blocks
        ]
        return torch.cat(places)[:, None]

    def drop(self, ended: Tensor) -> Tensor:
        """As every block does, those of which nothing is left too; which of the batch are kept."""
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
        """A token of each sample; query [samples, heads, 1, size] → [samples, 1, heads, size]."""
        sizes = [block.rows.numel() for block in self.blocks]
        pieces = zip(query.split(sizes), key.split(sizes), value.split(sizes), strict=True)
        outputs = [
            block.advance(layer, self.length, *piece, scale, window)
            for block, piece in zip(self.blocks, pieces, strict=True)
        ]
        return torch.cat(outputs).transpose(1, 2)


def _cached_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    cache: _Block | _Cache | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """transformers' SDPA on whole sequences without padding, or on what a cache holds of them."""
    refuse_dropped(settings, "rollout=hf", "use rollout=vllm_local")
    del attention_mask  # transformers makes none for an implementation it does not know
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    window = sys.maxsize if sliding_window is None else sliding_window
    cache = _Block(torch.empty(0, 0), 0) if cache is None else cache
    layer: Any = module.layer_idx
    return cache.attend(layer, query, key, value, scale, window), None
