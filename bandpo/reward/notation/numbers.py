"""Numbers in digits: thousands separators, decimals that recur, numerals in lowest form, bounds."""

from __future__ import annotations

import math
import re
from fractions import Fraction

MAX_CHARS = 1024
MAX_NESTING = 24
MAX_DIGITS = 64
MAX_EXPONENT = 64

_GROUP = r"(?:,\s?\\!\s?|,|\{,\}|\\,|\\!|\\ |\\;|\\:|~)"
_GROUPED = re.compile(rf"(?<![\d.,])(\d{{1,3}})((?:{_GROUP}\d{{3}})+)(?![\d,])")
_SPACED_NUMBER = re.compile(r"[+-]?\d{1,3}(?: \d{3})+(?:\.\d+)?")
# In a list no number begins with a zero, so that 1,00,000 can only be one number, as in India.
_INDIAN = re.compile(r"[+-]?\d{1,2}(?:,\d{2})+,\d{3}(?:\.\d+)?")
_INDIAN_ZERO = re.compile(r"(?=.*,0)" + _INDIAN.pattern)
_SINGLE: list[tuple[re.Pattern[str], str]] = [
    (_INDIAN, ","),
    (re.compile(r"[+-]?\d{1,3}(?:\.\d{3}){2,}"), "."),
    (re.compile(r"[+-]?\d{1,3}(?:\.\d{3})+,\d+"), "."),
    (re.compile(r"[+-]?\d{1,3}(?: \d{3})+,\d+"), " "),
    (re.compile(r"[+-]?\d{1,3}(?:'\d{3})+(?:[.,]\d+)?"), "'"),
    (re.compile(r"[+-]?\d+,\d+"), " "),
]


def ungrouped(text: str) -> str:
    """The text without separators of thousands: `1,234`, `1\\,234`, `1{,}234`, `1,\\!234`."""
    text = _GROUPED.sub(_ungroup, text)
    bare = text.strip("$ .")
    if _SPACED_NUMBER.fullmatch(bare):
        return bare.replace(" ", "")
    return bare.replace(",", "") if _INDIAN_ZERO.fullmatch(bare) else text


def spread(text: str) -> str:
    """The text with every comma that might separate thousands as one that separates a list."""
    return re.sub(r"(?<=\d),(?=\d{3}(?!\d))", ", ", text)


def _ungroup(match: re.Match[str]) -> str:
    # (1,234) and \{1,234\} are two numbers; 1,234 and \frac{1,234}{5} hold one
    before = match.string[: match.start()].replace("\\{", "[").replace("\\}", "]")
    in_list = sum(before.count(sign) for sign in "([") > sum(before.count(s) for s in ")]")
    if in_list and "\\" not in match[2] and "{" not in match[2]:
        return match[0]
    return match[1] + re.sub(r"\D", "", match[2])


def single_number(text: str) -> str:
    """A number as other countries separate it, for a text that is known to be no list.

    `0,5` is 0.5, `1.234,56` and `1 234,56` are 1234.56, `1.000.000` and `12,34,567` are integers.
    """
    for pattern, separator in _SINGLE:
        if pattern.fullmatch(text):
            return text.replace(separator, "").replace(",", ".")
    return text


_DOTTED = re.compile(
    r"(\d*\.\d*)\\(?:dot|bar|overbar)\s*(?:\{\s*(\d+)\s*\}|(\d))"
    r"(?:(\d*)\\dot\s*(?:\{\s*(\d)\s*\}|(\d)))?"
)
_BRACKETED = re.compile(r"(?<![\w.])(\d*\.\d*)\((\d{1,32})\)(?![\w(])")
_ENDLESS = re.compile(r"(?<![\w.])(\d*\.\d*?)(\d{1,12}?)(\2+)\s*\.\.\.(?!\d)")
_BARRED = re.compile(r"(\d*\.\d*)\\overline\s*(\d)")


def recurring(text: str) -> str:
    """Decimals that recur, written with `\\overline`: `0.\\dot{3}`, `0.(3)`, `0.333...`.

    Digits before an ellipsis recur if they stand there twice, a single one three times.
    """
    if "." not in text:
        return text
    text = _DOTTED.sub(_dotted, text)
    text = _BARRED.sub(r"\1\\overline{\2}", text)
    text = _BRACKETED.sub(r"\1\\overline{\2}", text)
    return _ENDLESS.sub(_endless, text)


def _dotted(match: re.Match[str]) -> str:
    first, between, last = match[2] or match[3], match[4] or "", match[5] or match[6] or ""
    if not last:
        return rf"{match[1]}\overline{{{first}}}" + between
    return rf"{match[1]}\overline{{{first}{between}{last}}}"


def _endless(match: re.Match[str]) -> str:
    period, repeats = match[2], 1 + len(match[3]) // len(match[2])
    if repeats < (3 if len(period) == 1 else 2):
        return match[0]
    return rf"{match[1]}\overline{{{period}}}"


def too_large(text: str) -> bool:
    """Whether parsing could cost more than any answer is worth: length, nesting, integer size."""
    if len(text) > MAX_CHARS:
        return True
    depth = 0
    for sign in text:
        depth += (sign in "({[") - (sign in ")}]")
        if depth > MAX_NESTING:
            return True
    digits = max((len(run) for run in re.findall(r"\d+", text)), default=0)
    exponents = [int(e) for e in re.findall(r"\d[eE][+-]?(\d{1,9})", text)]
    return digits > MAX_DIGITS or max(exponents, default=0) > MAX_EXPONENT


_GREEK = re.compile(
    r"\\(?:var)?(?:alpha|beta|gamma|delta|epsilon|zeta|eta|theta|iota|kappa|lambda|mu|nu|xi|rho"
    r"|sigma|tau|upsilon|phi|chi|psi|omega|ell|Gamma|Delta|Theta|Lambda|Xi|Sigma|Phi|Psi|Omega)"
    r"(?![A-Za-z])"
)


def is_constant(text: str) -> bool:
    """Whether the text is free of variables: digits, operators, π, e, i and functions of them."""
    letters = re.sub(r"\\[A-Za-z]+|(?<![A-Za-z])[ei](?![A-Za-z])", "", _GREEK.sub(" x ", text))
    return not re.search(r"[A-Za-z]", letters)


_INT = r"\d{1,64}"
_DECIMAL = re.compile(rf"({_INT})?\.(\d{{0,64}})")
_REPEATING = re.compile(r"(\d{0,64})\.(\d{0,64})\\overline\{(\d{1,64})\}")
_FRACTION = re.compile(
    rf"(?P<whole>{_INT} ?)??(?:"
    rf"\\frac ?(?:\{{ ?(?P<n1>[+-]? ?{_INT}) ?\}}|(?P<n2>\d)) ?"
    rf"(?:\{{ ?(?P<d1>[+-]? ?{_INT}) ?\}}|(?P<d2>\d))"
    rf"|\{{?(?P<n3>{_INT})\}}? ?(?:/ ?|: ?(?!0))\{{?(?P<d3>-?{_INT})\}}?)"
)
_SCIENTIFIC = re.compile(
    r"(?:(\d{1,64}(?:\.\d{1,64})?) ?(?:\\times|\\cdot|\*) ?)?"
    r"10 ?\^ ?(?:\{ ?([+-]?\d{1,2}) ?\}|(\d))"
)
_E_NOTATION = re.compile(r"(\d{1,64}(?:\.\d{1,64})?)[eE]([+-]?\d{1,2})")


def numeral(text: str) -> Fraction | None:
    """The value of a rational number in lowest form; None for anything left to evaluate.

    Integers, decimals (also repeating), fractions and ratios in lowest terms, mixed numbers and
    scientific notation; `37+14`, `102/2`, `2^{10}` and `\\sqrt{4}` are None.
    """
    text = text.strip()
    while (text[:1], text[-1:]) in (("(", ")"), ("{", "}")):
        text = text[1:-1].strip()
    sign = -1 if text.startswith("-") else 1
    text = text[1:].strip() if text[:1] in ("+", "-") else text
    value = _positive_numeral(text)
    return None if value is None else sign * value


def _positive_numeral(text: str) -> Fraction | None:
    if re.fullmatch(_INT, text, re.ASCII):
        return Fraction(int(text))
    if (match := _DECIMAL.fullmatch(text)) and any(match.groups()):
        return Fraction(f"{match[1] or 0}.{match[2] or 0}")
    if match := _REPEATING.fullmatch(text):
        whole, fixed, period = match.groups()
        scale, nines = 10 ** len(fixed), 10 ** len(period) - 1
        return Fraction(int(whole + fixed or 0)) / scale + Fraction(int(period), scale * nines)
    if match := _FRACTION.fullmatch(text):
        return _fraction(match)
    if match := _SCIENTIFIC.fullmatch(text):
        return Fraction(match[1] or 1) * Fraction(10) ** int(match[2] or match[3])
    if match := _E_NOTATION.fullmatch(text):
        return Fraction(match[1]) * Fraction(10) ** int(match[2])
    return None


def _fraction(match: re.Match[str]) -> Fraction | None:
    part = {k: int(v.replace(" ", "")) for k, v in match.groupdict().items() if v}
    top = next(part[k] for k in ("n1", "n2", "n3") if k in part)
    bottom = next(part[k] for k in ("d1", "d2", "d3") if k in part)
    if bottom in (0, 1, -1) or math.gcd(top, bottom) != 1:
        return None
    if "whole" not in part:
        return Fraction(top, bottom)
    return part["whole"] + Fraction(top, bottom) if 0 < top < bottom else None


_CERTAIN = re.compile(r"[+-]?(?:\d{1,64}|\d{0,64}\.\d{1,64}|\d{1,3}(?:,\d{3}){1,6})")


def certain_value(text: str) -> Fraction | None:
    """The value of a plain integer or decimal, the only kind decided without math-verify."""
    text = text.strip().removeprefix("$").removesuffix("$").strip().removesuffix(".")
    if not _CERTAIN.fullmatch(text) or not text.isascii():
        return None
    return Fraction(text.replace(",", ""))


def exact(text: str) -> str:
    """With decimals as fractions, so that equality is exact: 0.333 is not 1/3."""

    def rewrite(match: re.Match[str]) -> str:
        value = _positive_numeral(match[0])
        return match[0] if value is None else fraction(value)

    return re.sub(r"\d*\.\d*\\overline\{\d+\}|\d*\.\d+", rewrite, text)


def fraction(value: Fraction) -> str:
    """A rational number in LaTeX."""
    sign, top = "-" if value < 0 else "", abs(value.numerator)
    whole = value.denominator == 1
    return f"{sign}{top}" if whole else rf"{sign}\frac{{{top}}}{{{value.denominator}}}"
