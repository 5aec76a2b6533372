"""Decodes sampled tokens to the text that is scored and saved."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bandpo.data.prompting.chat import set_chat_template
from bandpo.types import Completion, Group, Prompt, logprob_array, token_array

Sampled = tuple[NDArray[np.int32], ArrayLike, bool]
"""A sample's tokens, their log-probabilities, and whether it ended before the limit."""

_NAMED = ("bos", "eos", "pad", "unk", "sep", "cls", "mask")
_TAG = re.compile(r"<(/?)([A-Za-z]\w*)>")
_REASONING = re.compile("think|thought|reason|channel", re.IGNORECASE)
_SYSTEM = {"role": "system", "content": "s"}
# The assistant turn is not the last: templates keep the reasoning of the last one, if of any.
_TURNS = [
    {"role": "user", "content": "u"},
    {"role": "assistant", "content": "a"},
    {"role": "user", "content": "u"},
]


class Decoder:
    """Decodes completions without the special tokens that frame them, but with all others.

    Dropped are the tokenizer's named special tokens (end, padding, …), those that its chat template
    writes around turns, and the special token that ended a completion. Tags, `<x>` with `</x>`, and
    tokens named after thinking, reasoning or channels are kept: the verifier must see where
    reasoning ends. Ids that the tokenizer does not have stand for no text.
    """

    def __init__(self, tokenizer: Any, chat_template: str | None = None) -> None:
        """`chat_template` is that of the prompts if it is not the tokenizer's own."""
        if chat_template is not None:
            tokenizer = copy(tokenizer)  # the engine's may be in use elsewhere
            set_chat_template(tokenizer, chat_template)
        self._tokenizer = tokenizer
        self._special = _special_tokens(tokenizer)
        self._framing = np.array(sorted(_framing(tokenizer, self._special)), np.int32)
        # A model may have more tokens; some tokenizers fail on theirs.
        self._known = 1 + max(tokenizer.get_vocab().values())

    def group(self, prompt: Prompt, samples: Iterable[Sampled], weight_version: int) -> Group:
        """The group of a prompt's samples."""
        found = list(samples)
        texts = self([tokens for tokens, _, _ in found], [ended for _, _, ended in found])
        return Group(
            prompt,
            tuple(
                Completion(
                    text=text,
                    token_ids=tokens,
                    logprobs=logprob_array(logprobs),
                    finish_reason="stop" if ended else "length",
                    weight_version=weight_version,
                )
                for text, (tokens, logprobs, ended) in zip(texts, found, strict=True)
            ),
        )

    def __call__(self, samples: Sequence[ArrayLike], ended: Sequence[bool]) -> list[str]:
        """The texts of samples, each of which was `ended` by its last token or by the limit."""
        bodies = [self._body(token_array(s), end) for s, end in zip(samples, ended, strict=True)]
        kept = [body[~np.isin(body, self._framing) & (body < self._known)] for body in bodies]
        texts: list[str] = self._tokenizer.batch_decode(
            [body.tolist() for body in kept], skip_special_tokens=False
        )
        return texts

    def _body(self, sample: NDArray[np.int32], ended: bool) -> NDArray[np.int32]:
        return sample[:-1] if ended and len(sample) and sample[-1] in self._special else sample


def _special_tokens(tokenizer: Any) -> dict[int, str]:
    """Token id → text of every token that transformers would skip as special."""
    decoder = getattr(tokenizer, "added_tokens_decoder", {})  # Mistral's own has none
    added = {token: str(entry) for token, entry in decoder.items() if entry.special}
    named = tokenizer.all_special_ids
    return added | dict(zip(named, tokenizer.convert_ids_to_tokens(named), strict=True))


def _framing(tokenizer: Any, special: Mapping[int, str]) -> frozenset[int]:
    named = {getattr(tokenizer, f"{name}_token_id", None) for name in _NAMED}
    texts = set(special.values())
    around = special.keys() & set(_template_tokens(tokenizer))
    turns = {token for token in around if not _is_content(special[token], texts)}
    return frozenset(token for token in named | turns if token is not None)


def _is_content(text: str, special: set[str]) -> bool:
    """Whether a special token is content: a tag that has a partner, or a mark of reasoning."""
    if _REASONING.search(text):
        return True
    match = _TAG.fullmatch(text)
    return match is not None and f"<{'' if match[1] else '/'}{match[2]}>" in special


def _template_tokens(tokenizer: Any) -> Iterator[int]:
    """The tokens that the chat template writes for a dialogue with and without a system turn."""
    if not getattr(tokenizer, "chat_template", None):
        return
    for turns in ([_SYSTEM, *_TURNS], _TURNS):
        for prompted in (False, True):
            try:
                text = tokenizer.apply_chat_template(
                    turns, add_generation_prompt=prompted, tokenize=False
                )
            except Exception:  # a template may refuse a conversation, each in its own way
                continue
            yield from tokenizer(text, add_special_tokens=False)["input_ids"]
