"""Numbers in words: `forty-two`, `2.5 million`, `3 dozen`, `two thirds`, `12th`, `7 squared`."""

from __future__ import annotations

import re
from fractions import Fraction

_UNIT_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
)
_TEN_WORDS = "twenty thirty forty fifty sixty seventy eighty ninety"
_TENS = _TEN_WORDS.split()
_NUMBERS = {word: n for n, word in enumerate(_UNIT_WORDS.split())} | {
    word: 10 * n for n, word in enumerate(_TENS, 2)
}
_SCALES = {
    "hundred": Fraction(100),
    "thousand": Fraction(10**3),
    "million": Fraction(10**6),
    "billion": Fraction(10**9),
    "trillion": Fraction(10**12),
}
_PARTS = {
    "half": 2,
    "halves": 2,
    "third": 3,
    "fourth": 4,
    "quarter": 4,
    "fifth": 5,
    "sixth": 6,
    "seventh": 7,
    "eighth": 8,
    "ninth": 9,
    "tenth": 10,
    "twelfth": 12,
    "hundredth": 100,
    "thousandth": 1000,
}
_MULTIPLES: dict[str, Fraction] = {
    **_SCALES,
    "mn": Fraction(10**6),
    "bn": Fraction(10**9),
    "dozen": Fraction(12),
    "tenth": Fraction(1, 10),
    "hundredth": Fraction(1, 100),
    "thousandth": Fraction(1, 1000),
    "ten thousand": Fraction(10**4),
    "hundred million": Fraction(10**8),
}
_MULTIPLE = "|".join(sorted(_MULTIPLES, key=len, reverse=True))
_SCALED = re.compile(
    r"(?<![\w.^_])(?P<number>\d{1,30}(?:\.\d{1,30})?|\\frac\{\d{1,30}\}\{\d{1,30}\})"
    rf"[ -]?(?P<text>\\text\{{\s*)?(?P<scale>{_MULTIPLE})s?(?![A-Za-z])",
    re.IGNORECASE,
)
_ORDINAL = re.compile(
    r"(?<![\d.,/])(\d+)\s?(\^\s?)?(\{\s?)?(\\text\{\s?)?(?:st|nd|rd|th)(?![A-Za-z])"
    r"(?(4)\s?\})(?(3)\s?\})"
)
_NTH = re.compile(r"(?<![A-Za-z\\])([a-z])\s?\^\s?(\{)?\s?\\text\{\s?th\s?\}(?(2)\s?\})")
_OPERATIONS: list[tuple[re.Pattern[str], str]] = [
    (re.compile(rf"(?<=[\d}}]) ?(?:\\text\{{ ?)?{words}(?![A-Za-z])(?: ?\}})?"), sign)
    for words, sign in [
        ("squared", "^{2}"),
        ("cubed", "^{3}"),
        ("factorial", "!"),
        (r"(?:times|multiplied by)(?= ?\}? ?[\d\\(-])", r" \\times "),
        (r"plus(?= ?\}? ?[\d\\(-])", "+"),
        (r"minus(?= ?\}? ?[\d\\(-])", "-"),
        (r"(?:divided by|over)(?= ?\}? ?[\d\\(-])", "/"),
    ]
]
_NEGATIVE = re.compile(r"(\\text\{\s*)?(?:negative|minus)\s+(\})?\s*", re.IGNORECASE)
_LETTERS = re.compile(r"[A-Za-z][A-Za-z ,'-]*")
_WRAPPED = re.compile(r"\\text\{([^{}]*)\}")


def in_digits(text: str) -> str:
    """The text with its numbers in words as digits; other words stay as they are.

    A text of words alone is read from its beginning: `seven apples`, but not `chapter seven`.
    """
    if not re.search(r"[A-Za-z]{2}", text):
        return text
    if match := _NEGATIVE.match(text):
        rest, opened = text[match.end() :], match[1] and not match[2]
        number = in_digits(rest.replace("}", "", 1) if opened else rest)
        if number[:1].isdigit():
            return f"-{number}"
    text = _words_first(text)
    text = _SCALED.sub(_scaled, text)
    text = _NTH.sub(r"\1", _ORDINAL.sub(r"\1 ", text)).strip()
    for pattern, sign in _OPERATIONS:
        text = pattern.sub(sign, text)
    return re.sub(r"\\text\{\s*\}", "", text).strip()


def is_scale(word: str) -> bool:
    """Whether a word multiplies what stands before it: `million`, `dozen`."""
    return word.strip().lower().removesuffix("s") in _MULTIPLES


def decimal(value: Fraction) -> str:
    """A rational number as a finite decimal, or as a fraction where it has none."""
    digits = 0
    while digits < 40 and (value * 10**digits).denominator != 1:
        digits += 1
    if digits == 40:
        return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
    whole = str(int(value * 10**digits)).rjust(digits + 1, "0")
    return f"{whole[:-digits]}.{whole[-digits:]}" if digits else whole


def _scaled(match: re.Match[str]) -> str:
    number = match["number"].removeprefix("\\frac")
    parts = re.findall(r"[\d.]+", number)
    value = Fraction(parts[0]) / (Fraction(parts[1]) if len(parts) > 1 else 1)
    rest = "\\text{" if match["text"] else ""
    return f"{decimal(value * _MULTIPLES[match['scale'].lower()])} {rest}"


def _words_first(text: str) -> str:
    inner = _WRAPPED.sub(r" \1 ", text).strip()
    if not _LETTERS.fullmatch(inner):
        return text
    tokens = re.findall(r"[a-z]+|[^a-z]+", inner.lower())
    value, used = _number(tokens)
    if value is None:
        return text
    rest = inner[sum(map(len, tokens[:used])) :].strip(" ,-")
    return decimal(value) + (rf" \text{{ {rest}}}" if rest else "")


def _number(tokens: list[str]) -> tuple[Fraction | None, int]:
    """The number that a list of words and gaps begins with, and how many of them it takes."""
    total, current, used, last = Fraction(0), None, 0, ""
    for position in range(0, len(tokens), 2):
        word, gap = tokens[position], tokens[position - 1].strip() if position else ""
        if gap not in ("", "-") and not (gap == "," and last in _SCALES):
            break
        if word in _NUMBERS and _may_follow(word, last):
            current = (current or Fraction(0)) + _NUMBERS[word]
        elif word in ("a", "an") and position == 0 and _next(tokens, 0) in _SCALES:
            current = Fraction(1)
        elif word == "hundred" and current:
            current *= 100
        elif word in _SCALES and current:
            total, current = total + current * _SCALES[word], Fraction(0)
        elif word == "half" and current is None:
            return Fraction(1, 2), position + 1
        elif (part := _part(word)) and current and total == 0:
            return current / part, position + 1
        elif word != "and" or last not in _SCALES or _next(tokens, position) not in _NUMBERS:
            break
        used, last = position + 1, last if word == "and" else word
    return (None, 0) if current is None else (total + current, used)


def _may_follow(word: str, last: str) -> bool:
    """Whether a number word continues a number: `forty two`, `hundred ten`; not `one two`."""
    return not last or last in _SCALES or (last in _TENS and 0 < _NUMBERS[word] < 10)


def _next(tokens: list[str], position: int) -> str:
    return tokens[position + 2] if position + 2 < len(tokens) else ""


def _part(word: str) -> int | None:
    return _PARTS.get(word) or _PARTS.get(word.removesuffix("s"))
