"""Letters of multiple choice: those of a reference and those that an answer names."""

from __future__ import annotations

import re
from dataclasses import dataclass

_TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")
_ONE = r"\(?\s*([A-J])\s*\)?"
_WITH_TEXT = re.compile(r"(?:\(\s*([A-J])\s*\)|([A-J])\s*[.):]|([A-J])\s+is(?=\s))\s*(?![-+*/^=])(\S.*)", re.DOTALL)
_INTRODUCED = re.compile(
    r"(?:the\s+)?(?:correct\s+)?(?:options?|choices?|answers?)\s*(?:is|are|:)?\s*", re.IGNORECASE
)
_SEVERAL = re.compile(r"\(?[A-J]\)?\.?(?:\s*(?:,|;|and|&|,\s*and)?\s*\(?[A-J]\)?\.?)+")
_MARKED = re.compile(r"\(\s*[A-J]\s*\)|(?<![A-Za-z])[A-J]\s*[.)]")


@dataclass(frozen=True)
class Choice:
    """The letters of a reference, and the text of the option where it is written beside one."""

    letters: frozenset[str]
    text: str = ""


def choice(text: str) -> Choice | None:
    """The choice that a reference is: `B`, `(B)`, `A, C`, `ACD`, `(D) 12`; None for others."""
    text = _TEXT.sub(r"\1", text).strip()
    if match := re.fullmatch(_ONE, text):
        return Choice(frozenset(match[1]))
    if letters := _several(text):
        return Choice(letters)
    match = _WITH_TEXT.fullmatch(text)
    if match and not match[3] and not _MARKED.search(match[4]):
        return Choice(frozenset(match[1] or match[2]), match[4].strip())
    return None


def chosen(answer: str) -> frozenset[str] | None:
    """The letters that an answer names: `b`, `(B)`, `B) 5`, `Option B`, `A and C`; None for others."""
    text = _TEXT.sub(r"\1", answer).strip()
    text = _INTRODUCED.sub("", text, count=1) if _INTRODUCED.match(text) else text
    if match := re.fullmatch(_ONE, text, re.IGNORECASE):
        return frozenset(match[1].upper())
    if letters := _several(text):
        return letters
    match = _WITH_TEXT.fullmatch(text)
    if match and not _MARKED.search(match[4]):
        return frozenset(match[1] or match[2] or match[3])
    return None


def _several(text: str) -> frozenset[str] | None:
    """Different letters in order, with or without signs between them; `BAD` is a word."""
    if not _SEVERAL.fullmatch(text):
        return None
    letters = re.findall(r"(?<![a-z])[A-J](?![a-z])", text)
    return frozenset(letters) if letters == sorted(set(letters)) else None
