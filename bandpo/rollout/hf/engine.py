"""The engine of `rollout=hf`.

As many groups as the cache has room for (a wave) decode together, one token of each sample per
forward pass; samples that have ended leave the batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from bandpo.errors import UserError
from bandpo.model.agreement import TOLERANCE, gap_between, own_logprobs
from bandpo.model.architecture import token_bytes
from bandpo.model.features import likely_settings, softcap_of
from bandpo.model.files import refuse_quantised
from bandpo.model.loading import load_causal_lm
from bandpo.model.naming import load_from_files
from bandpo.model.vocabulary import end_tokens
from bandpo.rollout.decoding import Decoder
from bandpo.rollout.engine import EngineSpec, RolloutEngine, Sampling
from bandpo.rollout.hf.cache import CACHED, Block, Cache
from bandpo.rollout.hf.draw import Draw
from bandpo.rollout.hf.stop_strings import StopStrings
from bandpo.types import Completion, Group, Problem, Prompt


class HFGenerate(RolloutEngine):
    """An engine with its own copy of the model and up to `cache_gib` GiB of keys and values."""

    name = "hf"

    def __init__(self, spec: EngineSpec, *, cache_gib: float = 1.0) -> None:
        """Raises UserError for a model whose state is more than attention's keys and values."""
        from transformers import AutoConfig, AutoTokenizer

        self.weight_version = 0
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        path, trusted = spec.model_path, {"trust_remote_code": spec.trust_remote_code}
        config = AutoConfig.from_pretrained(path, **trusted)
        refuse_quantised(path, config)
        if cap := softcap_of(config):
            raise UserError(f"rollout=hf: config.json has {cap}; use rollout=vllm_local")
        self._model: Any = load_causal_lm(path, dtype=spec.dtype, attention=CACHED, **trusted)
        self._model.to(self._device).eval()
        self._room = int(cache_gib * 2**30 / token_bytes(self._model.config, spec.dtype))
        self._tokenizer = AutoTokenizer.from_pretrained(path, **trusted)
        self._ends = end_tokens(path, config, self._tokenizer).keys()
        self._decode = Decoder(self._tokenizer, spec.chat_template)
        self._prove_cache(TOLERANCE[spec.dtype])

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[Group]:
        """Yields the groups of each wave when all have ended; shorter prompts first."""
        wave: list[Prompt] = []
        taken = 0
        for prompt in sorted(prompts, key=lambda prompt: len(prompt.token_ids)):
            needed = len(prompt.token_ids) + sampling.n * sampling.max_tokens
            if wave and taken + needed > self._room:
                yield from self._wave(wave, sampling)
                wave, taken = [], 0
            wave.append(prompt)
            taken += needed
        if wave:
            yield from self._wave(wave, sampling)

    @torch.no_grad()
    def _wave(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Group]:
        cache = Cache()
        logits = [
            self._prefill(cache, [prompt.token_ids for prompt in same], sampling)
            for _, same in groupby(prompts, key=lambda prompt: len(prompt.token_ids))
        ]
        vocabulary = self._model.config.get_text_config().vocab_size
        draw = Draw(prompts, sampling, vocabulary, self._device)
        with_stop_string = StopStrings(prompts, sampling, self._tokenizer)
        shape = (len(prompts) * sampling.n, sampling.max_tokens)
        tokens = torch.zeros(shape, dtype=torch.long, device=self._device)
        logprobs = torch.zeros(shape, device=self._device)
        ends = torch.tensor(sorted(self._ends | set(sampling.stop_token_ids)), device=self._device)
        lengths = torch.full(shape[:1], sampling.max_tokens, device=self._device)
        ended = torch.zeros(shape[:1], dtype=torch.bool, device=self._device)
        scores = torch.cat(logits)
        for step in range(sampling.max_tokens):
            rows = cache.rows
            chosen, logp = draw(scores, rows, tokens[:, :step])
            tokens[rows, step], logprobs[rows, step] = chosen, logp
            now = (torch.isin(chosen, ends) | with_stop_string(rows, chosen)) & ~ended[rows]
            lengths[rows[now]] = step + 1
            ended[rows[now]] = True
            if bool(ended.all()) or step + 1 == sampling.max_tokens:
                break
            kept = cache.drop(ended)
            scores = self._model(
                chosen[kept, None], position_ids=cache.positions(), use_cache=False, cache=cache
            ).logits[:, -1]
            cache.length += 1
        arrays = tokens.int().cpu().numpy(), logprobs.cpu().numpy()
        samples = list(zip(*arrays, lengths.tolist(), ended.tolist(), strict=True))
        return [
            self._group(prompt, samples[i * sampling.n : (i + 1) * sampling.n])
            for i, prompt in enumerate(prompts)
        ]

    def _prefill(
        self, cache: Cache, prompts: Sequence[tuple[int, ...]], sampling: Sampling
    ) -> Tensor:
        """Prefills prompts of one length; the logits of each sample's first token."""
        ids = torch.tensor(prompts, device=self._device)
        count = len(prompts) * sampling.n
        rows = torch.arange(cache.count, cache.count + count, device=self._device)
        block = Block(rows.view(len(prompts), sampling.n), sampling.max_tokens)
        scores = self._model(ids, use_cache=False, logits_to_keep=1, cache=block).logits[:, -1]
        if len(block.prompts) != self._model.config.get_text_config().num_hidden_layers:
            raise UserError(
                "rollout=hf: not every layer of this model is attention of the usual kind; use "
                "rollout=vllm_local"
            )
        cache.blocks.append(block)
        return scores.repeat_interleave(sampling.n, 0)

    def _group(
        self, prompt: Prompt, samples: Sequence[tuple[NDArray[Any], NDArray[Any], int, bool]]
    ) -> Group:
        # Copies: a view would keep the whole wave with its padding.
        cut = (
            (ids[:length].copy(), logp[:length].copy(), ended)
            for ids, logp, length, ended in samples
        )
        return self._decode.group(prompt, cut, self.weight_version)

    def _prove_cache(self, tolerance: float) -> None:
        """Raises UserError unless a sample's log-probabilities are those of a full forward pass.

        Models with other state than keys and values, or another attention, would otherwise be
        sampled wrongly without an error.
        """
        ids = tuple(i % self._model.config.get_text_config().vocab_size for i in (1, 2, 3))
        prompt = Prompt(Problem("probe", "", ""), "", ids)
        (group,) = self._wave([prompt], Sampling(n=1, max_tokens=4))
        (completion,) = group.completions
        own = own_logprobs(self._model, ids, completion.token_ids)
        scored = [completion.logprobs.tolist(), *self.logprobs(prompt, [completion])]
        gap = gap_between([own, own], scored).mean
        if not gap <= tolerance:
            raise UserError(
                "rollout=hf: this model keeps more than keys and values from token to token, or "
                "does more with them than usual (log-probabilities differ from transformers' own "
                f"by {gap:.3g}; {likely_settings(self._model.config)}); use rollout=vllm_local"
            )

    @torch.no_grad()
    def logprobs(self, prompt: Prompt, completions: Sequence[Completion]) -> list[list[float]]:
        """Teacher-forced log-probabilities at temperature 1 under the engine's own weights."""
        start = len(prompt.token_ids)
        found = []
        for completion in completions:
            whole = [*prompt.token_ids, *completion.token_ids.tolist()]
            tokens = torch.tensor([whole], device=self._device)
            logits = self._model(tokens, use_cache=False).logits[0, start - 1 : -1].float()
            chosen = tokens[0, start:, None]
            found.append(logits.log_softmax(-1).gather(-1, chosen).squeeze(-1).tolist())
        return found

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Copies the stream into the model; raises RuntimeError when it is not complete."""
        load_from_files(self._model, weights)
        self.weight_version = version

    def close(self) -> None:
        """Frees the model."""
        self._model = None
