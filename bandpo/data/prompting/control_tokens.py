"""A control token that a problem spells (`<|im_end|>`) is tokenized as plain text.

Each control token has a private character that stands for it. A problem's control tokens are
replaced by theirs before the templates see it, so that control tokens that a template writes differ
from those that a text spells. For encoding the two are swapped: a copy of the tokenizer knows the
control tokens by their private characters alone, and the spelled ones are text to it.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from bandpo.errors import UserError

# Planes 15 and 16 of Unicode, without their last two code points, which are not characters.
_PRIVATE = (*range(0xF0000, 0xFFFFE), *range(0x100000, 0x10FFFE))
_TAG = re.compile(r"<[^<>\s]+>")


def _is_tag(token: Any) -> bool:
    return not token.normalized and _TAG.fullmatch(str(token)) is not None


class ControlTokens:
    """The control tokens of a tokenizer: those marked as special, and the tags that its chat
    template writes or looks for, such as `<think>`.
    """

    def __init__(self, tokenizer: Any, template: str, texts: Iterable[str]) -> None:
        """`template` is the source of the chat template, or what stands in its place.

        `texts` are all that will be hidden or rendered; no private character is taken from them.
        """
        self._tokenizer = tokenizer
        self._ids = {
            str(token): id
            for id, token in tokenizer.added_tokens_decoder.items()
            if token.special or (_is_tag(token) and str(token) in template)
        }
        self._control = set(self._ids.values()) - {tokenizer.unk_token_id}
        used = set(template).union(*texts)
        free = (chr(point) for point in _PRIVATE if chr(point) not in used)
        self._private = dict(zip(self._ids, free, strict=False))
        self._spelled = {ord(char): token for token, char in self._private.items()}
        longest_first = sorted(self._ids, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._copy: Any = None

    def hide(self, text: str) -> str:
        """The text with a private character for each control token that it spells."""
        return self._pattern.sub(lambda found: self._private[found.group()], text)

    def shown(self, text: str) -> str:
        """A hidden text with its control tokens spelled out."""
        return text.translate(self._spelled)

    def parts(self, rendered: str) -> list[tuple[str, bool]]:
        """Texts rendered around hidden ones, in parts, each with whether it is a control token."""
        parts: list[tuple[str, bool]] = []
        start = 0
        for token in self._pattern.finditer(rendered):
            parts += [(self.shown(rendered[start : token.start()]), False), (token.group(), True)]
            start = token.end()
        parts.append((self.shown(rendered[start:]), False))
        return [(text, is_control) for text, is_control in parts if text]

    def is_control(self, token_id: int) -> bool:
        """Whether an id is that of a control token."""
        return token_id in self._control

    def encode(self, rendered: Sequence[str]) -> list[list[int]]:
        """The tokens of texts that templates rendered around hidden ones.

        Where none is hidden they are exactly the tokenizer's own. Raises `UserError` if the
        tokenizer still reads a spelled control token as one.
        """
        if not rendered:
            return []
        # Special tokens that belong there are written already.
        texts = [self.shown(text) for text in rendered]
        encoded = self._tokenizer(texts, add_special_tokens=False)["input_ids"]
        return [
            list(ids) if text == shown and not self._surplus(text, ids) else self._as_text(text)
            for text, shown, ids in zip(rendered, texts, encoded, strict=True)
        ]

    def _surplus(self, text: str, ids: Sequence[int]) -> Counter[int]:
        """Control tokens among the ids that the template did not write."""
        return self._among(ids) - self._written(text)

    def _written(self, text: str) -> Counter[int]:
        return self._among(self._ids[token] for token in self._pattern.findall(text))

    def _among(self, ids: Iterable[int]) -> Counter[int]:
        """How often each control token occurs; any text may hold what counts as unknown."""
        return Counter(id for id in ids if id in self._control)

    def _as_text(self, rendered: str) -> list[int]:
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        ids = self._by_pieces(rendered) if backend is None else self._by_copy(rendered, backend)
        if self._among(ids) != self._written(rendered):
            name, text = self._tokenizer.name_or_path, self.shown(rendered)
            raise UserError(
                f"the tokenizer of {name} cannot read the control tokens that this problem spells "
                f"as text; remove the problem, or spell them otherwise: {text[:1000]!r}"
            )
        return ids

    def _by_copy(self, rendered: str, backend: Any) -> list[int]:
        from tokenizers import Tokenizer

        if self._copy is None:
            self._copy = Tokenizer.from_str(_renamed(backend.to_str(), self._private))
        places = self._private | {chr(point): token for point, token in self._spelled.items()}
        either = re.compile(f"{self._pattern.pattern}|[{''.join(self._private.values())}]")
        swapped = either.sub(lambda found: places[found.group()], rendered)
        return list(self._copy.encode(swapped, add_special_tokens=False).ids)

    def _by_pieces(self, rendered: str) -> list[int]:
        """For a tokenizer in Python: the text between the template's tokens, piece by piece."""
        ids: list[int] = []
        start = 0
        for token in [*self._pattern.finditer(rendered), None]:
            piece = self.shown(rendered[start : token.start() if token else None])
            if piece:
                options = {"add_special_tokens": False, "split_special_tokens": True}
                ids += self._tokenizer(piece, **options)["input_ids"]
            if token:
                ids.append(self._ids[token.group()])
                start = token.end()
        return ids


def _renamed(serialized: str, names: dict[str, str]) -> str:
    """A tokenizer of the tokenizers library, serialized, with other names for some tokens.

    Also in its model's vocabulary, where a unigram or a word would find them without the list of
    added tokens. Ids stay.
    """
    state = json.loads(serialized)
    for token in state["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model = state["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(token, token): id for token, id in model["vocab"].items()}
    else:
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
    if model.get("unk_token") is not None:
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    if "merges" in model:  # control tokens are cut out before merging
        model["merges"] = [
            pair for pair in model["merges"] if names.keys().isdisjoint([*pair, "".join(pair)])
        ]
    return json.dumps(state | {"post_processor": None, "truncation": None, "padding": None})
