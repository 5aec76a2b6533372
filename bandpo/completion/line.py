"""A command line that is being typed, taken apart as a shell does."""

from __future__ import annotations

from typing import NamedTuple


class Line(NamedTuple):
    """Words up to the cursor, without quotes and backslashes; the first is the program."""

    before: tuple[str, ...]
    """The words before the one at the cursor."""
    word: str
    """The word at the cursor, up to it; empty behind a space."""
    kept: str = ""
    """The part of `word` that readline keeps: up to the last word break or the open quote."""
    is_quoted: bool = False
    """Whether the cursor is between quotes."""


def read_line(text: str, breaks: str = "") -> Line:
    """The line up to the cursor; `breaks` are the characters at which readline parts words."""
    words: list[str] = []
    word: str | None = None
    kept = outside = 0
    quote = ""
    characters = iter(text)
    for character in characters:
        if character.isspace() and not quote:
            words += [] if word is None else [word]
            word, kept = None, 0
            continue
        word = word or ""
        if character == quote:
            quote, kept = "", outside
        elif character in "'\"" and not quote:
            quote, outside, kept = character, kept, len(word)
        elif character == "\\" and quote != "'":
            following = next(characters, "")
            word += following if not quote or following in '"\\$`' else f"\\{following}"
        else:
            word += character
            if character in breaks and not quote:
                kept = len(word)
    word = word or ""
    return Line(tuple(words), word, word[:kept], bool(quote))
