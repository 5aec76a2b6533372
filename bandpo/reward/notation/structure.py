"""Shapes of answers that math-verify misreads: ratios, named points, functions, mixed products."""

from __future__ import annotations

import re

from bandpo.reward.notation.braces import split_list

_RATIO_NAMES = re.compile(
    r"(?=[^=]*[A-Za-z])(?![^=:]*\d\s*:)[A-Za-z0-9_{}\\ '()]+(?::[A-Za-z0-9_{}\\ '()]+)+="
)
_TERM = re.compile(r"[\w\\{}()^.+*/ -]+")
# The constant of integration, where the other letters are one variable and numbers.
_CONSTANT = re.compile(r"(?<=[\w})|])\s*\+\s*(?:c|k|K|\\text\{\s*[Cc](?:onst(?:ant)?)?\.?\s*\})$")
_POINT = re.compile(
    r"(?<![A-Za-z\\_{}(])(?P<name>[A-Z](?:_\{?\d\}?|')?)\s*(?P<point>\([^()]*,[^()]*\))(?!\s*=)"
)
_COUNTED = re.compile(
    r"(?<=[\d})])\s*\\text\{\s*([^{}]*?[A-Za-z][^{}]*?)[\s,]+(and|or)\s*\}(?=\s*[\d\\$-])"
)
_LABELLED = re.compile(
    r"(?<![A-Za-z\\])(?:\\text\{\s*)?((?!Wrong|Not|Never|False|Incorrect)[A-Z][a-z]{3,9}|min|max)\s*(?:\}\s*:|:\s*\}|:)\s*(?=[-\d\\(])"
)
_BASE = re.compile(
    r"(?<=[\dA-F)}])\s*(?:_\s*\{\s*\\text\{\s*base\s*\}?\s*(\d+)\s*\}\s*\}?"
    r"|\(?\\text\{\s*\(?\s*(?:in )?base(?:\s|-|\})+(\d+|[a-z]+)\s*\)?\s*\}?\)?"
    r"|\(?\s(?:in )?base (\d+|[a-z]+)\)?)$"
)
_MODULUS = re.compile(r"\s*\(?\s*\\text\{\s*\(?\s*mod(?:ulo)?\s*\}?\s*(\d+)\s*\)?\s*\}?\)?$")
_TO = re.compile(r"(\d+)\s*(?:\\text\{\s*to\s*\}|to)\s*(\d+)")
_FACTOR = re.compile(r"(?<![\w})/])(\d{1,9})/(\d{1,9})(?=\s+(?:[a-z]|\\(?:pi|sqrt))(?![A-Za-z]))")
_DEFINED = re.compile(r"[fghFpPqQuyT]\s*\(\s*(?P<argument>[a-z])\s*\)\s*=(?P<body>[^=,<>]+)")


def structured(text: str) -> str:
    """The text with ratios, points, bases, functions and products as math-verify reads them.

    `3:4:5` is `(\\frac{4}{3},\\frac{5}{3})`, `A(1,2)` is `A=(1,2)`, `1/2 x` is `\\frac{1}{2} x`,
    `f(x) = 2x` is `y = 2x`.
    """
    text = _COUNTED.sub(r"\\text{ \1} \\text{ \2 }", text)
    text = re.sub(r"^([-+]?[\d.]+)'('?)$", r"\1 \\text{ prime\2}", text)
    text = _POINT.sub(r"\g<name>=\g<point>", text)
    text = _FACTOR.sub(r"\\frac{\1}{\2}", text)
    text = _LABELLED.sub(r"\\text{\1}=", text)
    text = _BASE.sub(_subscript, text)
    text = _MODULUS.sub(r" \\pmod{\1}", text)
    if match := _TO.fullmatch(text):
        return f"{match[1]}:{match[2]}"
    if match := _CONSTANT.search(text):
        text = text[: match.start()] + "+C" if _has_one_variable(text[: match.start()]) else text
    if match := _DEFINED.fullmatch(text):
        text = f"y={match['body'].strip()}" if match["argument"] == "x" else text
    return _ratio(text)


_FUNCTION = re.compile(r"[A-Za-z]\s*\(\s*(?P<argument>[a-z])\s*\)\s*=\s*(?P<body>[^=,<>]+)")


def _has_one_variable(text: str) -> bool:
    without_macros = re.sub(r"\\[A-Za-z]+|(?<![A-Za-z])[ei](?![A-Za-z])", "", text)
    letters = set(re.findall(r"[A-Za-z]", without_macros))
    return len(letters) == 1 and letters <= set("xtuyz")


def _subscript(match: re.Match[str]) -> str:
    base = match[1] or match[2] or match[3]
    return rf"_{{{base}}}" if base.isdecimal() else rf"_{{\text{{{base}}}}}"


def with_argument(text: str, other: str) -> str:
    """A function of another letter than that of `other`, in its letter: `f(t)=t^2` for `y=x^2`."""
    given = _FUNCTION.fullmatch(text)
    if given is None or not re.match(r"\s*(?:y|[A-Za-z]\s*\(\s*[a-z]\s*\))\s*=", other):
        return text
    wanted = _FUNCTION.fullmatch(other)
    letter = wanted["argument"] if wanted else "x"
    argument, body = given["argument"], given["body"]
    if letter != argument and re.search(rf"(?<![A-Za-z\\]){letter}(?![A-Za-z])", body):
        return text
    body = re.sub(rf"(?<![A-Za-z\\]){argument}(?![A-Za-z])", letter, body)
    return f"{other.split('=')[0].strip()}={body}"


_PIECES = re.compile(
    r"(?:[^=&]*[A-Za-z][^=&]*=)?\s*\\begin\{(cases|array)\}(?:\{[lcr|]*\})?(.*)\\end\{\1\}",
    re.DOTALL,
)
_IF = re.compile(
    r"\\text\{\s*,?\s*(?:if|for|when|where|on)\s*\}|(?<![A-Za-z\\])(?:if|for|when)(?![A-Za-z])"
)
_OTHERWISE = re.compile(r"\\text\{\s*(?:otherwise|else|elsewhere)\s*\}|otherwise|else")


def pieces(text: str) -> list[tuple[str, str]] | None:
    """Values and conditions of a function by cases; None for other texts.

    `\\begin{cases} x, & \\text{if } x > 0 \\\\ 0, & \\text{otherwise} \\end{cases}` has the pieces
    `x` where `x > 0` and `0` elsewhere, which is the condition "".
    """
    match = _PIECES.fullmatch(text.strip())
    if match is None:
        return None
    rows = [row.split("&") for row in re.split(r"\\\\(?:\[[^\]]*\])?", match[2]) if row.strip()]
    if not rows or any(len(row) != 2 for row in rows):
        return None
    return [(_piece(value), _OTHERWISE.sub("", _IF.sub("", _piece(case)))) for value, case in rows]


def _piece(text: str) -> str:
    return _IF.sub("", text.strip().rstrip(",;.")).strip().rstrip(",;.").strip()


def _ratio(text: str) -> str:
    if ":" not in text:
        return text
    ratio = _RATIO_NAMES.sub("", text, count=1) if "=" in text else text
    terms = [term.strip() for term in split_list(ratio, ":")]
    if len(terms) < 2 or not all(term and _TERM.fullmatch(term) for term in terms):
        return text
    if len(terms) == 2:
        return ratio
    return "(" + ",".join(rf"\frac{{{term}}}{{{terms[0]}}}" for term in terms[1:]) + ")"
