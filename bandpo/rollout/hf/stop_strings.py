"""Finds stop strings while samples grow, in the text that each token adds, as vLLM does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tokenizers.decoders import DecodeStream
from torch import Tensor

from bandpo.errors import UserError
from bandpo.rollout.engine import Sampling
from bandpo.types import Prompt

# tokenizers' error where a token makes the text so far another one, after bytes that are no UTF-8.
_OTHER_TEXT = "Invalid prefix encountered"


class StopStrings:
    """The samples of a wave that end with a stop string; special tokens count with their text.

    A character of several tokens is text once its last one has come.
    """

    def __init__(self, prompts: Sequence[Prompt], sampling: Sampling, tokenizer: Any) -> None:
        """Raises UserError for a tokenizer that cannot decode token by token."""
        self._stop, self._overlap = sampling.stop, max(map(len, sampling.stop), default=1) - 1
        self._tokenizer: Any = getattr(tokenizer, "backend_tokenizer", None)
        if self._stop and self._tokenizer is None:
            raise UserError(
                "rollout=hf: stop strings need a tokenizer of the tokenizers library "
                "(tokenizer.json); name token ids instead, or use rollout=vllm_local"
            )
        count = sampling.n if self._stop else 0
        self._streams = [_stream(prompt.token_ids) for prompt in prompts for _ in range(count)]
        self._tails = [""] * len(self._streams)

    def __call__(self, rows: Tensor, tokens: Tensor) -> Tensor:
        """Whether a stop string is complete in each of these samples with its next token."""
        if not self._stop:
            return torch.zeros_like(tokens, dtype=torch.bool)
        found = map(self._ends, rows.tolist(), tokens.tolist())
        return torch.tensor(list(found), device=tokens.device)

    def _ends(self, row: int, token: int) -> bool:
        # Text before the tail holds no beginning of a stop string that is not complete yet.
        text = self._tails[row] + self._text(row, token)
        self._tails[row] = text[max(0, len(text) - self._overlap) :]
        return any(stop in text for stop in self._stop)

    def _text(self, row: int, token: int) -> str:
        try:
            return self._streams[row].step(self._tokenizer, token) or ""
        except Exception as error:  # the library's only kind
            if not str(error).startswith(_OTHER_TEXT):
                raise
            self._streams[row] = _stream([])
            return self._streams[row].step(self._tokenizer, token) or ""


def _stream(prompt: Sequence[int]) -> DecodeStream:
    return DecodeStream(ids=list(prompt), skip_special_tokens=False)
