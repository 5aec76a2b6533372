"""Generation with a transformers model alone, for places without vLLM; chosen with `rollout=hf`.

All groups of a wave advance together, a token a forward pass. A prompt is computed once for its
group; its samples' keys and values grow in place, and samples that have ended leave the batch. A
wave is as many groups as the cache has room for.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from bandpo.errors import UserError
from bandpo.rollout.engine import Sampling
from bandpo.rollout.kv_cache import token_bytes
from bandpo.types import Completion, Group, Problem, Prompt

CACHED = "sdpa_cached"
# Largest difference of a log-probability between one pass a token and one pass for all.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.3}
MOST_ENDED = 0.25
"""The share of a block's samples that may have ended before they are taken out: it is a copy."""


class HFGenerate:
    """An engine that keeps its own copy of the model, and keys and values of up to `cache_gib`."""

    name = "hf"
    replicas = 1
    samples_apart = False

    def __init__(
        self,
        model_path: str,
        *,
        dtype: str = "float32",
        seed: int = 0,
        trust_remote_code: bool = False,
        max_model_len: int = 2048,
        cache_gib: float = 1.0,
        threads: int = 1,
    ) -> None:
        """Raises UserError for a model with state that is not keys and values of attention."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        del seed, max_model_len, threads  # prompts carry their seeds; room is made as it is needed
        self.weight_version = 0
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model: Any = AutoModelForCausalLM.from_pretrained(
            model_path,
            dtype=getattr(torch, dtype),
            attn_implementation=CACHED,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
        )
        self._model.to(self._device).eval()
        self._room = int(cache_gib * 2**30 / token_bytes(self._model.config, dtype))
        self._tokenizer = AutoTokenizer.from_pretrained(
            model_path, trust_remote_code=trust_remote_code
        )
        self._prove_cache(TOLERANCE[dtype])

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[Group]:
        """Yields the groups of a wave, shorter prompts first, when all of them have ended."""
        wave: list[Prompt] = []
        for prompt in sorted(prompts, key=lambda prompt: len(prompt.token_ids)):
            longest = len(prompt.token_ids) + sampling.max_tokens
            if wave and (len(wave) + 1) * sampling.n * longest > self._room:
                yield from self._wave(wave, sampling)
                wave = []
            wave.append(prompt)
        if wave:
            yield from self._wave(wave, sampling)

    @torch.no_grad()
    def _wave(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Group]:
        cache = _Cache(sampling.max_tokens)
        logits = [
            self._prefill(cache, [prompt.token_ids for prompt in same], sampling.n)
            for _, same in groupby(prompts, key=lambda prompt: len(prompt.token_ids))
        ]
        draw = _Draw(prompts, sampling, self._model.config.vocab_size, self._device)
        shape = (len(prompts) * sampling.n, sampling.max_tokens)
        tokens = torch.zeros(shape, dtype=torch.long, device=self._device)
        logprobs = torch.zeros(shape, device=self._device)
        ends = torch.tensor(sorted(self._end_tokens()), device=self._device)
        lengths = torch.full(shape[:1], sampling.max_tokens, device=self._device)
        ended = torch.zeros(shape[:1], dtype=torch.bool, device=self._device)
        scores = torch.cat(logits)
        for step in range(sampling.max_tokens):
            rows = cache.rows
            chosen, logp = draw(scores, rows)
            tokens[rows, step], logprobs[rows, step] = chosen, logp
            now = torch.isin(chosen, ends) & ~ended[rows]
            lengths[rows[now]] = step + 1
            ended[rows[now]] = True
            if bool(ended.all()) or step + 1 == sampling.max_tokens:
                break
            kept = cache.drop(ended)
            scores = self._model(
                chosen[kept, None], position_ids=cache.positions(), use_cache=False, cache=cache
            ).logits[:, -1]
            cache.length += 1
        whole = tokens.tolist(), logprobs.tolist(), lengths.tolist(), ended.tolist()
        samples = list(zip(*whole, strict=True))
        return [
            self._group(prompt, samples[i * sampling.n : (i + 1) * sampling.n])
            for i, prompt in enumerate(prompts)
        ]

    def _prefill(self, cache: _Cache, prompts: Sequence[tuple[int, ...]], n: int) -> Tensor:
        """Computes prompts of one length; the scores of each sample's first token."""
        ids = torch.tensor(prompts, device=self._device)
        block = _Block(ids.shape[1], n, cache.count + torch.arange(len(prompts) * n).to(ids))
        scores = self._model(ids, use_cache=False, logits_to_keep=1, cache=block).logits[:, -1]
        block.make_room(cache.room)
        cache.blocks.append(block)
        return scores.repeat_interleave(n, 0)

    def _group(
        self, prompt: Prompt, samples: Sequence[tuple[list[int], list[float], int, bool]]
    ) -> Group:
        cut = [tokens[:length] for tokens, _, length, _ in samples]
        texts = self._tokenizer.batch_decode(cut, skip_special_tokens=True)
        return Group(
            prompt,
            tuple(
                Completion(
                    text=text,
                    token_ids=tuple(tokens),
                    logprobs=tuple(logprobs[:length]),
                    finish_reason="stop" if ended else "length",
                    weight_version=self.weight_version,
                )
                for text, tokens, (_, logprobs, length, ended) in zip(
                    texts, cut, samples, strict=True
                )
            ),
        )

    def _end_tokens(self) -> set[int]:
        ends = self._model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        return {token for token in (*ends, self._tokenizer.eos_token_id) if token is not None}

    def _prove_cache(self, tolerance: float) -> None:
        """Raises UserError where a token's log-probability is another when one pass sees it all.

        Models that keep other state than keys and values would lose it without an error.
        """
        prompt = Prompt(Problem("probe", "", ""), "", (1, 2, 3))
        (group,) = self._wave([prompt], Sampling(n=1, max_tokens=4))
        (found,) = self.logprobs(prompt, group.completions)
        wanted = torch.tensor(group.completions[0].logprobs)
        gap = float((torch.tensor(found) - wanted).abs().max())
        if not gap <= tolerance:
            raise UserError(
                "rollout=hf: this model keeps more than keys and values from token to token "
                f"(log-probabilities differ by {gap:.3g}); use rollout=vllm_local"
            )

    @torch.no_grad()
    def logprobs(self, prompt: Prompt, completions: Sequence[Completion]) -> list[list[float]]:
        """Teacher-forced log-probabilities at temperature 1 under the engine's own weights."""
        start = len(prompt.token_ids)
        found = []
        for completion in completions:
            tokens = torch.tensor([prompt.token_ids + completion.token_ids], device=self._device)
            logits = self._model(tokens, use_cache=False).logits[0, start - 1 : -1].float()
            chosen = tokens[0, start:, None]
            found.append(logits.log_softmax(-1).gather(-1, chosen).squeeze(-1).tolist())
        return found

    @torch.no_grad()
    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Copies the stream into the model; raises RuntimeError when it is not complete."""
        own = dict(self._model.named_parameters(remove_duplicate=False))
        missing = set(own)
        for name, tensor in weights:
            own[name].copy_(tensor)
            missing.discard(name)
        if missing:
            raise RuntimeError(f"the weight stream lacks {sorted(missing)[:5]}")
        self.weight_version = version

    def sleep(self) -> None:
        """Nothing: the copy stays where it is."""

    def wake(self) -> None:
        """Nothing: the copy stays where it is."""

    def close(self) -> None:
        """Drops the model."""
        self._model = None


class _Draw:
    """Draws tokens; what a prompt's samples get depends on its seed and their scores alone."""

    def __init__(
        self, prompts: Sequence[Prompt], sampling: Sampling, vocabulary: int, device: torch.device
    ) -> None:
        from transformers import TopKLogitsWarper, TopPLogitsWarper

        self._temperature = sampling.temperature
        self._warpers: list[Any] = []
        if 0 < sampling.top_k < vocabulary:
            self._warpers.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            self._warpers.append(TopPLogitsWarper(sampling.top_p))
        self._generators = [torch.Generator(device).manual_seed(p.seed) for p in prompts]
        self._noise = torch.empty(len(prompts), sampling.n, vocabulary, device=device)

    def __call__(self, scores: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """A token for each of these rows and its log-probability as it was drawn from.

        With E exponential, argmax p / E is distributed as p.
        """
        scores = scores.float()
        if self._temperature == 0:
            best = scores.log_softmax(-1).max(-1)
            return best.indices, best.values
        scores = scores / self._temperature
        for warper in self._warpers:
            scores = warper(None, scores)
        logp = scores.log_softmax(-1)
        for noise, generator in zip(self._noise, self._generators, strict=True):
            noise.exponential_(generator=generator)
        chosen = (logp.exp() / self._noise.flatten(0, 1)[rows]).argmax(-1)
        return chosen, logp.gather(-1, chosen[:, None]).squeeze(-1)


@dataclass
class _Block:
    """Keys and values of the samples, `n` a prompt, of prompts of one length."""

    prompt_length: int
    n: int
    rows: Tensor
    """Which of the wave's samples these are."""
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int
    ) -> Tensor:
        """The prompts themselves, causal; query [prompts, heads, L, size] → [prompts, L, …]."""
        if query.shape[2] > window:
            raise UserError(
                f"rollout=hf: {query.shape[2]} tokens at once are more than the model's attention "
                f"window of {window}; use rollout=vllm_local"
            )
        self.keys.append(key)
        self.values.append(value)
        groups = query.shape[1] > key.shape[1]
        output = scaled_dot_product_attention(
            query, key, value, is_causal=query.shape[2] > 1, scale=scale, enable_gqa=groups
        )
        return output.transpose(1, 2)

    def make_room(self, tokens: int) -> None:
        """Copies the prompts' keys and values to each sample, with room for its tokens."""
        for states in (self.keys, self.values):
            for layer, prompts in enumerate(states):
                count, heads, length, size = prompts.shape
                room = prompts.new_empty(count, self.n, heads, length + tokens, size)
                room[..., :length, :] = prompts[:, None]
                states[layer] = room.flatten(0, 1)

    def keep(self, kept: Tensor) -> None:
        """Forgets the other samples."""
        self.rows = self.rows[kept]
        for states in (self.keys, self.values):
            states[:] = [state[kept] for state in states]


class _Cache:
    """The blocks of a wave, which advance together."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.length = 0  # tokens that every sample has beside its prompt
        self.blocks: list[_Block] = []

    @property
    def count(self) -> int:
        """Samples so far."""
        return sum(len(block.rows) for block in self.blocks)

    @property
    def rows(self) -> Tensor:
        """The samples in the batch, in its order."""
        return torch.cat([block.rows for block in self.blocks])

    def positions(self) -> Tensor:
        """Where the tokens that come next stand in their sequences, [samples, 1]."""
        places = [
            torch.full_like(block.rows, block.prompt_length + self.length) for block in self.blocks
        ]
        return torch.cat(places)[:, None]

    def drop(self, ended: Tensor) -> Tensor:
        """Takes out samples that have ended, once they are many; which of the batch are kept."""
        kept = []
        for block in self.blocks:
            going_on = ~ended[block.rows]
            if float(going_on.float().mean()) >= 1 - MOST_ENDED:
                going_on[:] = True
            else:
                block.keep(going_on)
            kept.append(going_on)
        self.blocks = [block for block in self.blocks if len(block.rows)]
        return torch.cat(kept)

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int
    ) -> Tensor:
        """A token of each sample; query [samples, heads, 1, size] → [samples, 1, heads, size].

        Query heads that share a key stand where a sequence's tokens would: nothing is repeated.
        """
        sizes = [len(block.rows) for block in self.blocks]
        outputs = []
        for block, q, k, v in zip(
            self.blocks, query.split(sizes), key.split(sizes), value.split(sizes), strict=True
        ):
            keys, values = block.keys[layer], block.values[layer]
            place = block.prompt_length + self.length
            keys[:, :, place], values[:, :, place] = k[:, :, 0], v[:, :, 0]
            seen = slice(max(0, place + 1 - window), place + 1)
            rows = q.reshape(-1, q.shape[1] // k.shape[1], q.shape[-1])  # [samples · kv heads, …]
            keys, values = (t[:, :, seen].flatten(0, 1) for t in (keys, values))
            # For one token a matrix product is twice as quick as the fused attention.
            weights = (torch.bmm(rows, keys.transpose(1, 2)).float() * scale).softmax(-1)
            outputs.append(torch.bmm(weights.to(values.dtype), values).view(q.shape))
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
    del attention_mask  # transformers makes none for an implementation it does not know
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    window = sys.maxsize if sliding_window is None else sliding_window
    cache = _Block(query.shape[2], 1, torch.empty(0)) if cache is None else cache
    layer: Any = module.layer_idx
    return cache.attend(layer, query, key, value, scale, window), None


AttentionInterface.register(CACHED, _cached_attention)
