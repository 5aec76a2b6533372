"""Finds the final answer in a completion; linear in its length, nothing is parsed.

In this order, in the text after the reasoning (`</think>`):

1. the last non-empty `\\boxed{…}` (or `\\fbox{…}`), brace-balanced;
2. else the last line with "Answer:" ("Final answer:", "The answer is:"), or the line after it;
3. else no answer, unless free extraction hands the end of the text to math-verify.

A box that never closes, a text that ends inside `\\boxed` and a reasoning that never ends are
`truncated`: an earlier box is then not the final answer. A candidate that is part of a verbatim
copy of the prompt does not count.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
_CUT_BOX = re.compile(r"\\(?:bo|box|boxe|fb|fbo)$")
_ANSWER_LINE = re.compile(r"\banswer(?:\s+is)?[\s*_]{0,8}[:：][*_]{0,4}([^\n]*)", re.IGNORECASE)
_BARE_TOKEN = re.compile(r"[^\s{}$]+")

# Of a text full of boxes only the last few can matter; bounds the work on a hostile one.
_CANDIDATES = 8
# How much of the text before a candidate must also stand in the prompt for it to be an echo.
_CONTEXT, _MIN_CONTEXT = 48, 16
# How much of an answer line must be copied too; the prompt may end within the line.
_LINE_START = 24
_FREE_TAIL = 400


@dataclass(frozen=True)
class Extraction:
    """The answer as written, or None; `free` marks text in which math-verify must search for it."""

    answer: str | None
    truncated: bool = False
    free: bool = False


def extract(completion: str, prompt: str = "", *, free: bool = False) -> Extraction:
    """The final answer of `completion`, ignoring what it copies from `prompt`."""
    text = _after_reasoning(completion, prompt)
    if text is None:
        return Extraction(None, truncated=True)
    echo = _Echo(text, prompt)
    for find in (_boxes, _answer_lines):
        for start, end, answer in find(text):
            if answer is None:
                return Extraction(None, truncated=True)
            if answer and not echo(start, end):
                return Extraction(answer)
    if free and text.strip():
        return Extraction(text[-_FREE_TAIL:], free=True)
    return Extraction(None)


def _after_reasoning(completion: str, prompt: str) -> str | None:
    _before, closed, after = completion.rpartition("</think>")
    if closed:
        return after
    opened = "<think>" in completion or prompt.rstrip().endswith("<think>")
    return None if opened else completion


def _boxes(text: str) -> Iterator[tuple[int, int, str | None]]:
    """Boxes from the last to the first as (start, end, content); content None where cut off."""
    if cut := _CUT_BOX.search(text, max(0, len(text) - 8)):
        yield cut.start(), len(text), None
    starts = [(match.start(), match.end()) for match in _BOX.finditer(text)]
    for start, inside in reversed(starts[-_CANDIDATES:]):
        if inside < len(text) and text[inside] == "{":
            end = _closing_brace(text, inside)
            yield start, end or len(text), None if end is None else text[inside + 1 : end].strip()
        elif token := _BARE_TOKEN.match(text, inside):
            yield start, token.end(), token.group()
        elif inside == len(text):
            yield start, inside, None


def _closing_brace(text: str, opening: int) -> int | None:
    depth, position = 0, opening
    while position < len(text):
        match text[position]:
            case "\\":
                position += 1  # an escaped brace is printed and does not group
            case "{":
                depth += 1
            case "}":
                depth -= 1
                if depth == 0:
                    return position
        position += 1
    return None


def _answer_lines(text: str) -> Iterator[tuple[int, int, str | None]]:
    matches = list(_ANSWER_LINE.finditer(text))
    for match in reversed(matches[-_CANDIDATES:]):
        line = match.group(1).strip(" \t*_")
        if not line:
            line = text[match.end() :].lstrip().split("\n", 1)[0].strip(" \t*_")
        yield match.start(), min(match.end(), match.start(1) + _LINE_START), line or None


class _Echo:
    """Whether a span of the text, with what stands before it, is copied from the prompt."""

    def __init__(self, text: str, prompt: str) -> None:
        self.text, self.prompt = text, "".join(prompt.split())

    def __call__(self, start: int, end: int) -> bool:
        if not self.prompt:
            return False
        context = "".join(self.text[max(0, start - _CONTEXT) : start].split())
        copied = context + "".join(self.text[start:end].split())
        return len(context) >= _MIN_CONTEXT and copied in self.prompt
