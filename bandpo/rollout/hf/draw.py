"""Draws the next token of each sample: penalties, temperature, cuts, in the order of vLLM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bandpo.rollout.engine import Sampling
from bandpo.types import Prompt


class Draw:
    """Draws tokens; a prompt's samples depend on its seed and their logits alone."""

    def __init__(
        self, prompts: Sequence[Prompt], sampling: Sampling, vocabulary: int, device: torch.device
    ) -> None:
        self._temperature = sampling.temperature
        self._penalise = _Penalties(prompts, sampling, vocabulary, device)
        self._cuts = _cuts(sampling, vocabulary)
        self._generators = [torch.Generator(device).manual_seed(p.seed) for p in prompts]
        shape = (len(prompts), sampling.n)
        self._uniform = torch.empty(shape, dtype=torch.float64, device=device)

    def __call__(self, scores: Tensor, rows: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """A token for each row and its log-probability in the distribution it was drawn from.

        `scores` are the logits of the samples `rows`; `drawn` are the tokens so far of all samples
        of the wave. Inverse transform sampling: the first token whose cumulative probability
        exceeds a uniform number, in float64, since float32 cannot resolve the tail of a large
        vocabulary.
        """
        scores = self._penalise(scores.float(), rows, drawn)
        if self._temperature == 0:
            best = scores.log_softmax(-1).max(-1)
            return best.indices, best.values
        scores = scores / self._temperature
        for cut in self._cuts:
            scores = cut(None, scores)
        logp = scores.log_softmax(-1)
        for uniform, generator in zip(self._uniform, self._generators, strict=True):
            uniform.uniform_(generator=generator)
        below = logp.exp().cumsum(-1, dtype=torch.float64)
        level = self._uniform.flatten()[rows, None] * below[:, -1:]
        # A level that rounds up to the total would lie beyond the last token.
        chosen = torch.searchsorted(below, level, right=True).clamp_(max=below.shape[-1] - 1)
        return chosen.squeeze(-1), logp.gather(-1, chosen).squeeze(-1)


def _cuts(sampling: Sampling, vocabulary: int) -> list[Any]:
    """The warpers that take tokens out of the distribution, in vLLM's order."""
    from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    warpers: list[Any] = []
    if sampling.min_p > 0:
        warpers.append(MinPLogitsWarper(sampling.min_p))
    if 0 < sampling.top_k < vocabulary:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    return warpers


class _Penalties:
    """Changes the logits of tokens that stand in a sample or its prompt.

    The repetition penalty r (Keskar et al. 2019, section 4.1) counts prompt and completion:
    l / r for l > 0, else l · r. Then l − f · count − p · [count > 0], which count the completion
    alone, with the frequency penalty f and the presence penalty p.
    """

    def __init__(
        self, prompts: Sequence[Prompt], sampling: Sampling, vocabulary: int, device: torch.device
    ) -> None:
        self._repetition, self._n = sampling.repetition_penalty, sampling.n
        self._presence = sampling.presence_penalty
        self._frequency = sampling.frequency_penalty
        self._is_off = self._repetition == 1 and self._presence == self._frequency == 0
        if self._is_off:
            return
        self._in_prompt = torch.zeros(len(prompts), vocabulary, dtype=torch.bool, device=device)
        for seen, prompt in zip(self._in_prompt, prompts, strict=True):
            seen[torch.tensor(prompt.token_ids, device=device)] = True

    def __call__(self, scores: Tensor, rows: Tensor, drawn: Tensor) -> Tensor:
        if self._is_off:
            return scores
        own = drawn[rows]
        once = torch.ones_like(own, dtype=scores.dtype)
        counts = torch.zeros_like(scores).scatter_add_(1, own, once)
        seen = self._in_prompt[rows // self._n] | (counts > 0)
        repeated = torch.where(scores > 0, scores / self._repetition, scores * self._repetition)
        scores = torch.where(seen, repeated, scores)
        return scores - self._frequency * counts - self._presence * (counts > 0)
