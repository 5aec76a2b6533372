"""Groups and arguments of LaTeX, found by counting braces instead of by patterns."""

from __future__ import annotations

import re
from collections.abc import Callable

_PAIRS = {"{": "}", "(": ")", "[": "]"}
_MACRO = re.compile(r"\\[A-Za-z]+")


def closing(text: str, opening: int) -> int | None:
    """The position of the bracket that closes the one at `opening`; None where it never closes.

    Only brackets of the same kind count, and an escaped one (`\\{`) is printed: it does not group.
    """
    opens, closes = text[opening], _PAIRS[text[opening]]
    depth, position = 0, opening
    while position < len(text):
        sign = text[position]
        if sign == "\\":
            position += 1
        elif sign == opens:
            depth += 1
        elif sign == closes:
            depth -= 1
            if depth == 0:
                return position
        position += 1
    return None


def arguments(text: str, position: int, count: int) -> tuple[list[str], int] | None:
    """The next arguments of a macro, each a group, a macro or one character, and where they end."""
    found: list[str] = []
    while len(found) < count:
        while position < len(text) and text[position] == " ":
            position += 1
        if position >= len(text) or text[position] in "})]&,=+-^_":
            return None
        if text[position] == "{":
            end = closing(text, position)
            if end is None:
                return None
            found.append(text[position + 1 : end])
            position = end + 1
        elif macro := _MACRO.match(text, position):
            found.append(macro[0])
            position = macro.end()
        else:
            found.append(text[position])
            position += 1
    return found, position


def rewritten(
    text: str, head: re.Pattern[str], count: int, write: Callable[[re.Match[str], list[str]], str]
) -> str:
    """The text with every macro that `head` finds, and its arguments, as `write` puts them.

    Inner macros come first; a macro without its arguments stays as it is.
    """
    for match in reversed(list(head.finditer(text))):
        read = arguments(text, match.end(), count)
        if read is not None:
            given, end = read
            text = text[: match.start()] + write(match, given) + text[end:]
    return text


def split_list(text: str, separator: str = ",") -> list[str]:
    """The parts between commas that no bracket encloses."""
    parts, depth = [""], 0
    for sign in text:
        depth += (sign in "([{") - (sign in ")]}")
        if sign == separator and depth <= 0:
            parts.append("")
        else:
            parts[-1] += sign
    return parts
