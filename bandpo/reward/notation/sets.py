"""Sets and lists in words and signs as math-verify reads them: ±, ≠, `or`, `{x | …}`, ℝ."""

from __future__ import annotations

import itertools
import re
from fractions import Fraction

from bandpo.reward.notation.braces import split_list
from bandpo.reward.notation.numbers import is_constant, numeral

_MOST_SIGNS, _MOST_MEMBERS = 4, 100
_SIGN = re.compile(r"\\(pm|mp)(?![A-Za-z])\s*")
_JOIN = r"\\text\{\s*,?\s*(?:and|or)\s*\}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])"
_WORDS_JOIN = re.compile(rf"\s*(?:{_JOIN})\s*")
_OR = re.compile(r"\s*,?\s*(?:\\text\{\s*,?\s*or\s*\}|(?<![A-Za-z\\])or(?![A-Za-z]))\s*")
_BOTH = re.compile(r"\s*,?\s*(?:\\text\{\s*,?\s*and\s*\}|(?<![A-Za-z\\])and(?![A-Za-z]))\s*")
_JOINED = re.compile(rf"\s*(?:,|;|{_JOIN})\s*(?:{_JOIN})?\s*")


def both_signs(text: str) -> str:
    """The text with each member of a list that has a ± as one member per sign.

    Signs are independent of each other, as in `(\\pm 1, \\pm 2)`; with a ∓ they go together.
    """
    if not _SIGN.search(text):
        return text
    text = text.strip()
    if text.startswith("\\{") and text.endswith("\\}") and text.count("\\{") == 1:
        return rf"\{{{both_signs(text[2:-2])}\}}"
    members = [part for piece in split_list(text) for part in _split_words(piece)]
    return ", ".join(variant for member in members for variant in _variants(member.strip()))


def _split_words(text: str) -> list[str]:
    return [part for part in _WORDS_JOIN.split(text) if part.strip()]


def _variants(member: str) -> list[str]:
    signs = [match[1] for match in _SIGN.finditer(member)]
    if not signs or len(signs) > _MOST_SIGNS:
        return [member]
    if "mp" in signs:
        choices = [tuple(s if sign == "pm" else -s for sign in signs) for s in (1, -1)]
    else:
        choices = list(itertools.product((1, -1), repeat=len(signs)))
    return [_signed(member, choice) for choice in choices]


def _signed(member: str, choice: tuple[int, ...]) -> str:
    values = iter(choice)

    def sign(match: re.Match[str]) -> str:
        before = member[: match.start()].rstrip()
        plus = "" if not before or before[-1] in "=({[,<>&" or before.endswith(r"\ne") else "+"
        return plus if next(values) > 0 else "-"

    return _SIGN.sub(sign, member)


# --- conditions on one real number ------------------------------------------------------------

_VARIABLE = r"(?:[A-Za-z]|\\(?:alpha|beta|gamma|theta|lambda|mu|rho|phi|varphi|omega|xi|tau))"
_BUILDER = re.compile(
    rf"\\\{{\s*(?P<name>{_VARIABLE})\s*"
    r"(?:\\in\s*(?P<domain>\\mathbb\{[RZNQ]\}|[RZNQ])(?:\^?\+)?)?\s*"
    r"(?:\\mid(?![A-Za-z])|\||:|;)(?P<condition>.*?)\\\}"
)
_RELATION = re.compile(r"\s*(<|>|\\le(?![A-Za-z])|\\ge(?![A-Za-z]))\s*")
_UNEQUAL = re.compile(rf"\s*(?P<name>{_VARIABLE})\s*\\ne(?![A-Za-z])\s*(?P<value>.+)")
_FLIPPED = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le"}
_REALS = re.compile(
    r"(?:^\s*\\\{\s*)?(?:[a-z]\s*(?=\\text\{\s*(?:is|can be|any))|[a-z] (?=is|can be))?"
    r"(?:\\text\{\s*|(?<![A-Za-z]))(?:is |can be )?(?:the )?(?:set of )?(?:all|any|every) (?:the )?"
    r"(?P<sign>positive |negative |non-?negative )?reals?(?: numbers?)?(?: values?)?(?: of)?"
    r"(?: [a-z](?![A-Za-z]))?[ .]*\}?(?: ?[a-z](?![A-Za-z]))?[ .]*(?:\\\})?"
    r"(?:\s*:?\s*\\mathbb\{R\})?$|^(?P<bare>positive |negative |nonnegative )reals?(?: numbers?)?$",
    re.IGNORECASE,
)
_INTEGERS = re.compile(
    r"^(?:\\text\{\s*)?(?:the set of )?(?:all |any |every )(?:the )?integers?[ .]*\}?$",
    re.IGNORECASE,
)
_HALF_LINES = {"positive": r"(0,\infty)", "negative": r"(-\infty,0)", "nonnegative": r"[0,\infty)"}
_HALF_LINE = re.compile(
    r"\\mathbb\{R\}\s*(?:\^\s*\{?\s*([+-])\s*\}?|_\s*\{?\s*(>|<|\\ge)\s*0\s*\}?"
    r"|_\s*\{?\s*([+-])\s*\}?)"
)
_REAL_LINE = r"(-\infty,\infty)"
_MINUS = re.compile(r"\s*(?:-|\\setminus|\\backslash)\s*(?=\\\{)")


def in_intervals(text: str) -> str:
    """Conditions on one real number as math-verify reads them.

    What joins conditions by `or`, and `x \\ne 1`, is a union of intervals; `3 > x > 1` is
    `1 < x < 3`; all real numbers are `(-\\infty,\\infty)`.
    """
    text = _REALS.sub(_real_numbers, text) if "eal" in text else text
    text = _HALF_LINE.sub(_half_line, text)
    text = re.sub(r"^\s*\\mathbb\{R\}\s*$", lambda _: _REAL_LINE, text)
    text = _INTEGERS.sub(lambda _: r"\mathbb{Z}", text)
    if not re.search(r"[<>]|\\(?:le|ge|ne)(?![A-Za-z])", text):
        return text
    return _union(text) or _unequal(text) or _excluded(text) or _turned(text)


def _real_numbers(match: re.Match[str]) -> str:
    sign = (match["sign"] or match["bare"] or "").strip().lower().replace("-", "")
    return _HALF_LINES.get(sign, _REAL_LINE)


def _half_line(match: re.Match[str]) -> str:
    sign = next(group for group in match.groups() if group)
    name = "positive" if sign in "+>" else "nonnegative" if "ge" in sign else "negative"
    return _HALF_LINES[name]


def _excluded(text: str) -> str | None:
    """`1 < x < 3, x \\ne 2` as an interval without points."""
    pieces = [piece for piece in _JOINED.split(text) if piece.strip()]
    points = [match for piece in pieces if (match := _UNEQUAL.fullmatch(piece))]
    ranges = [found for piece in pieces if (found := _interval(piece))]
    if len(ranges) != 1 or not points or len(points) + 1 != len(pieces):
        return None
    if {point["name"] for point in points} != {ranges[0][0]}:
        return None
    values = ", ".join(point["value"].strip() for point in points)
    return rf"{ranges[0][1]} \setminus \{{{values}\}}"


def conditions(text: str) -> str:
    """A set of real numbers by its condition: `\\{x \\mid x > 3\\}` is `x > 3`."""
    match = _BUILDER.search(text)
    if match is None:
        return text
    rest = text[match.end() :].strip()
    condition = match["condition"].strip()
    real = rf"{re.escape(match['name'])}\s*\\in\s*\\mathbb\{{R\}}"
    joined = rf"(?:{_JOINED.pattern})"
    condition = re.sub(rf"{joined}{real}\s*$|^{real}{joined}", "", condition)
    if (match["domain"] or "").strip("\\mathb{}") in ("Z", "N"):
        members = _integers(condition, match["name"], match["domain"])
        return text[: match.start()] + members + rest if members else text
    if match.start() == 0 and not rest:
        return condition
    interval = _interval(condition)
    if interval is None:
        return text
    return text[: match.start()] + interval[1] + _MINUS.sub(r" \\setminus ", rest)


def _integers(condition: str, name: str, domain: str) -> str | None:
    """The members of `\\{x \\in \\mathbb{Z} : |x| \\le 2\\}` where they are few."""
    absolute = re.fullmatch(rf"\|\s*{re.escape(name)}\s*\|\s*(<|\\le)\s*(\d+)", condition)
    if absolute:
        bound = int(absolute[2]) - (absolute[1] == "<")
        low, high = -bound, bound
    else:
        parts = _RELATION.split(_turned(condition))
        ends = [numeral(parts[0]), numeral(parts[-1])] if len(parts) == 5 else [None, None]
        if None in ends or parts[2].strip() != name or ends[0] is None or ends[1] is None:
            return None
        low = _least(ends[0], parts[1])
        high = -_least(-ends[1], parts[3])
    low = max(low, 0) if "N" in domain else low
    if not 0 <= high - low < _MOST_MEMBERS:
        return None
    return "\\{" + ",".join(str(n) for n in range(low, high + 1)) + "\\}"


def _least(bound: Fraction, relation: str) -> int:
    ceiling = -((-bound.numerator) // bound.denominator)
    return ceiling + 1 if relation == "<" and ceiling == bound else ceiling


def _union(text: str) -> str | None:
    """Conditions joined by `or` as a union of intervals, by `and` as an intersection."""
    for joint, sign in ((_OR, r" \cup "), (_BOTH, r" \cap ")):
        pieces = joint.split(text)
        intervals = [
            _interval(piece) or (_point(piece) if joint is _OR else None) for piece in pieces
        ]
        names = {interval[0] for interval in intervals if interval}
        if len(pieces) > 1 and None not in intervals and len(names) == 1:
            return sign.join(interval[1] for interval in intervals if interval)
    return None


def _interval(condition: str) -> tuple[str, str] | None:
    """The variable and the interval of `1 < x \\le 3`, `x > 2`."""
    parts = [part.strip() for part in _RELATION.split(_turned(condition.strip()))]
    if len(parts) == 5 and re.fullmatch(_VARIABLE, parts[2]):
        low, left, name, right, high = parts
        if not (is_constant(low) and is_constant(high) and {left, right} <= {"<", "\\le"}):
            return None
        return name, f"{'(' if left == '<' else '['}{low},{high}{')' if right == '<' else ']'}"
    if len(parts) != 3 or not re.fullmatch(_VARIABLE, parts[0]) or not is_constant(parts[2]):
        return None
    name, relation, bound = parts
    if relation in ("<", "\\le"):
        return name, rf"(-\infty,{bound}{')' if relation == '<' else ']'}"
    return name, rf"{'(' if relation == '>' else '['}{bound},\infty)"


def _point(condition: str) -> tuple[str, str] | None:
    match = re.fullmatch(rf"\s*({_VARIABLE})\s*=\s*([^=]+)", condition)
    return (match[1], rf"\{{{match[2].strip()}\}}") if match and is_constant(match[2]) else None


def _unequal(text: str) -> str | None:
    """`x \\ne 1, x \\ne 2` as the intervals between and around these numbers."""
    first, *others = [piece for piece in _JOINED.split(text) if piece.strip()]
    given = _UNEQUAL.fullmatch(first)
    if given is None:
        return None
    values = [given["value"]]
    for piece in others:
        match = _UNEQUAL.fullmatch(piece)
        if match and match["name"] != given["name"]:
            return None
        values.append(match["value"] if match else piece)
    if not all(is_constant(value) and not _RELATION.search(value) for value in values):
        return None
    return rf"{_REAL_LINE} \setminus \{{{', '.join(value.strip() for value in values)}\}}"


def _turned(text: str) -> str:
    """A chain of relations that falls as one that rises, a bound before its variable after it."""
    if "," in text or _WORDS_JOIN.search(text):
        return text
    parts = [part.strip() for part in _RELATION.split(text)]
    relations = parts[1::2]
    falls = all(relation in (">", "\\ge") for relation in relations)
    if not all(parts):
        return text
    if len(parts) == 5 and falls:
        pass
    elif not (len(parts) == 3 and is_constant(parts[0]) and not is_constant(parts[2])):
        return text
    turned = [_FLIPPED.get(part, part) for part in reversed(parts)]
    return " ".join(turned)
