"""Angles in degrees: minutes and seconds, degrees inside functions and beside lengths."""

from __future__ import annotations

import re
from fractions import Fraction

from bandpo.reward.notation.braces import closing, split_list
from bandpo.reward.notation.spelled import decimal

_MINUTES = re.compile(
    r"(\d{1,3})\s?(?:\^\\circ|\\text\{ ?degrees? ?(?:and ?)?\}|degrees?(?: and)?)\s?"
    r"(\d{1,2}(?:\.\d+)?)\s?(?:'(?!')|\\text\{ ?minutes? ?(?:and ?)?\}|minutes?(?: and)?)"
    r"(?:\s?(\d{1,2}(?:\.\d+)?)\s?(?:''|\"|\\text\{ ?seconds? ?\}|seconds?))?"
)
_TAKES_ANGLE = re.compile(
    r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])\s*(?:\^\s*(?:\{[^{}]*\}|\d)\s*)?|(?<=e)\^\s*(?=\{)"
)
_ARGUMENT_END = re.compile(
    r"[+\-=,&)}\]<>]|\\(?:sin|cos|tan|cot|sec|csc|cdot|times|le|ge)(?![A-Za-z])"
)
_DEGREES = re.compile(r"(\d+(?:\.\d+)?|\\[A-Za-z]+|[A-Za-z]|\\frac\{\d+\}\{\d+\})\s*\^\\circ")


def in_radians(text: str) -> str:
    """The text with degrees inside functions, and beside lengths in a tuple, as radians.

    `\\tan 40^\\circ` is `\\tan \\frac{40\\pi}{180}`, `(3,90^\\circ)` is `(3,\\frac{90\\pi}{180})`;
    `40^\\circ` and `(30^\\circ,60^\\circ)` stay.
    """
    if "^\\circ" not in text and "inute" not in text:
        return text
    text = _MINUTES.sub(_whole_degrees, text)
    for match in reversed(list(_TAKES_ANGLE.finditer(text))):
        end = _end_of_argument(text, match.end())
        inside = _DEGREES.sub(_radians, text[match.end() : end])
        text = text[: match.end()] + inside + text[end:]
    return _polar(text)


def _whole_degrees(match: re.Match[str]) -> str:
    minutes = Fraction(match[2]) + Fraction(match[3] or 0) / 60
    return decimal(int(match[1]) + minutes / 60) + r"^\circ "


def _radians(match: re.Match[str]) -> str:
    return rf"\frac{{{match[1]}\pi}}{{180}} "


def _end_of_argument(text: str, start: int) -> int:
    while start < len(text) and text[start] == " ":
        start += 1
    if start < len(text) and text[start] in "({":
        return (closing(text, start) or len(text) - 1) + 1
    end = _ARGUMENT_END.search(text, start)
    return end.start() if end else len(text)


def _polar(text: str) -> str:
    """A tuple in which some members, not all, are in degrees, with these in radians."""
    if not text.startswith("(") or closing(text, 0) != len(text) - 1:
        return text
    parts = split_list(text[1:-1])
    angles = ["^\\circ" in part for part in parts]
    if len(parts) < 2 or all(angles) or not any(angles):
        return text
    return f"({','.join(_DEGREES.sub(_radians, part) for part in parts)})"
