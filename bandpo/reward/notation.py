"""Rewrites answers, as people and models write them, as LaTeX that math-verify reads correctly.

Pure text, standard library alone. Each rule fixes a case that math-verify 0.9 gets wrong; see
`bandpo.reward.equality` for the list.
"""

from __future__ import annotations

import math
import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

MAX_CHARS = 1024
MAX_NESTING = 24
MAX_DIGITS = 64
MAX_EXPONENT = 64

_SIGNS = {
    **dict.fromkeys("−–—‒﹣－", "-"),
    **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\u00ad\u200e\u200f", None),
    **dict.fromkeys("×✕", r"\times "),
    **dict.fromkeys("·⋅∙", r"\cdot "),
    "÷": r"\div ",
    "∕": "/",
    "⁄": "/",
    "≤": r"\le ",
    "≥": r"\ge ",
    "≠": r"\ne ",
    "≈": r"\approx ",
    "±": r"\pm ",
    "π": r"\pi ",
    "∞": r"\infty ",
    "∪": r"\cup ",
    "∩": r"\cap ",
    "∈": r"\in ",
    "∅": r"\emptyset ",
    "ℝ": r"\mathbb{R}",
    "θ": r"\theta ",
    "α": r"\alpha ",
    "β": r"\beta ",
    **dict.fromkeys("°º˚", r"^\circ "),
    "½": r"\frac{1}{2}",
    "⅓": r"\frac{1}{3}",
    "⅔": r"\frac{2}{3}",
    "¼": r"\frac{1}{4}",
    "¾": r"\frac{3}{4}",
    "⅕": r"\frac{1}{5}",
    "⅛": r"\frac{1}{8}",
    "⟨": r"\langle ",
    "⟩": r"\rangle ",
}
_SIGN_TABLE = str.maketrans({k: v or "" for k, v in _SIGNS.items()})
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")

_GROUP = r"(?:,|\{,\}|\\,|\\!|\\ |\\;|\\:|~|(?:,\\!))"
_GROUPED = re.compile(rf"(?<![\d.,])(\d{{1,3}})((?:{_GROUP}\d{{3}})+)(?![\d,])")
_SPACED_NUMBER = re.compile(r"[+-]?\d{1,3}(?: \d{3})+(?:\.\d+)?")

_IN_DOLLARS = r"(?<!\\)\$((?:[^$\\]|\\.)*)\$"
_REWRITES: list[tuple[re.Pattern[str], str]] = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (rf"^{_IN_DOLLARS}\s*([A-Za-z][A-Za-z ]*)$", r"\1\\text{\2}"),
        (_IN_DOLLARS, r"\1"),
        (r"(?<!\\)\\[()\[\]]", ""),
        (r"^\\boxed\s*\{(.*)\}$", r"\1"),
        (r"(?:√|(?<![A-Za-z\\])sqrt)\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"√\s*(\d+|[A-Za-z])", r"\\sqrt{\1}"),
        (r"(?<![A-Za-z\\])(pi|infty)(?![A-Za-z])", r"\\\1 "),
        (r"(?<![A-Za-z\\])infinity(?![A-Za-z])", r"\\infty "),
        (r"<=", r"\\le "),
        (r">=", r"\\ge "),
        (r"\*\*", "^"),
        (r"\\(?:left|right|bigl?|bigr?|Bigl?|Bigr?|biggl?|biggr?)(?![A-Za-z])\s*\.?", ""),
        (r"\\(?:displaystyle|textstyle|limits|nolimits|rm|bf|it)(?![A-Za-z])", ""),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\(?:text|mbox|mathrm|textrm|textnormal|textbf|textit|mathbf|mathit|mathsf|boldsymbol"
         r"|operatorname|hbox|textsf|emph|bold)\s*\*?\s*\{", r"\\text{"),
        (r"\^\s*\{?\s*\\(?:circ|degree)\s*\}?|\\degrees?(?![A-Za-z])|\\textdegree", r"^\\circ "),
        (r"\\frac\s*(\\pi|\d)\s*(\\pi|\d)(?!\w)", r"\\frac{\1}{\2}"),
        (r"\\(?:leq|leqslant)(?![A-Za-z])", r"\\le"),
        (r"\\(?:geq|geqslant)(?![A-Za-z])", r"\\ge"),
        (r"\\(?:varnothing|empty)(?![A-Za-z])", r"\\emptyset"),
        (r"\\(?:lbrace|\{)", r"\\{"),
        (r"\\(?:rbrace|\})", r"\\}"),
        (r"\\(?:langle)(?![A-Za-z])", "("),
        (r"\\(?:rangle)(?![A-Za-z])", ")"),
        (r"\\(?:colon)(?![A-Za-z])", ":"),
        (r"\\(?:ldots|dots|cdots)(?![A-Za-z])", "..."),
        (r"\\\$", "$"),
        (r"\\%", "%"),
        (r"(?<!\\)\\[,;:! ]|~|\\(?:quad|qquad|thinspace)(?![A-Za-z])", " "),
        (r"\\text\{([^A-Za-z{}]*)\}", r"\1"),
        (r"^\\text\{\s*([-+$]?\s*\d[^{}]*)\}$", r"\1"),
        (r"\s+", " "),
    ]
]  # fmt: skip

_FINAL_PUNCTUATION = re.compile(r"(?<!\\)[,;:?]+$|(?<![.\\])\.$|(?:\\[,;:! ]|~)+$")


def canonical(text: str) -> str:
    """The same answer in one spelling: ASCII LaTeX without layout, fences, final punctuation."""
    text = re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+", lambda m: f"^{{{m[0].translate(_SUPERSCRIPTS)}}}", text)
    text = re.sub(r"[₀₁₂₃₄₅₆₇₈₉]+", lambda m: f"_{{{m[0].translate(_SUBSCRIPTS)}}}", text)
    text = unicodedata.normalize("NFKC", text.translate(_SIGN_TABLE)).translate(_SIGN_TABLE)
    text = _GROUPED.sub(_ungroup, text)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    text = _trimmed(text)
    if _SPACED_NUMBER.fullmatch(text):
        text = text.replace(" ", "")
    return text


def _trimmed(text: str) -> str:
    """Without Markdown around an answer and punctuation after it."""
    while (shorter := _FINAL_PUNCTUATION.sub("", text.strip()).strip("*`")) != text:
        text = shorter
    return text


def _ungroup(match: re.Match[str]) -> str:
    # (1,234) and \{1,234\} are two numbers; 1,234 and \frac{1,234}{5} hold one
    before = match.string[: match.start()].replace("\\{", "[").replace("\\}", "]")
    in_list = sum(before.count(sign) for sign in "([") > sum(before.count(s) for s in ")]")
    if in_list and "\\" not in match[2] and "{" not in match[2]:
        return match[0]
    return match[1] + re.sub(r"\D", "", match[2])


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


def is_constant(text: str) -> bool:
    """Whether the text is free of variables: digits, operators, π, e, i and functions of them."""
    return not re.search(
        r"[A-Za-z]", re.sub(r"\\[A-Za-z]+|(?<![A-Za-z])[ei](?![A-Za-z])", "", text)
    )


# --- numerals: rational numbers written out, with nothing left to evaluate -------------------

_INT = r"\d{1,64}"
_DECIMAL = re.compile(rf"({_INT})?\.(\d{{0,64}})")
_REPEATING = re.compile(r"(\d{0,64})\.(\d{0,64})\\overline\{(\d{1,64})\}")
_FRACTION = re.compile(
    rf"(?P<whole>{_INT} ?)??(?:"
    rf"\\frac ?(?:\{{ ?(?P<n1>[+-]? ?{_INT}) ?\}}|(?P<n2>\d)) ?"
    rf"(?:\{{ ?(?P<d1>[+-]? ?{_INT}) ?\}}|(?P<d2>\d))"
    rf"|\{{?(?P<n3>{_INT})\}}? ?[/:] ?\{{?(?P<d3>{_INT})\}}?)"
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


# --- units -----------------------------------------------------------------------------------

_UNIT_NAMES = {
    "mm": "mm millimeter millimetre",
    "cm": "cm centimeter centimetre",
    "m": "m meter metre",
    "km": "km kilometer kilometre",
    "in": "in inch inches",
    "ft": "ft foot feet",
    "yd": "yd yard",
    "mi": "mi mile",
    "mg": "mg milligram",
    "g": "g gram",
    "kg": "kg kilogram",
    "lb": "lb lbs pound",
    "oz": "oz ounce",
    "ml": "ml milliliter millilitre",
    "l": "l liter litre",
    "gal": "gal gallon",
    "ms": "ms millisecond",
    "s": "s sec second",
    "min": "min minute",
    "h": "h hr hour",
    "day": "day",
    "week": "week",
    "month": "month",
    "year": "year yr",
    "mi/h": "mph",
    "km/h": "kmh kph kmph",
    "$": "$ dollar usd buck",
    "cent": "cent ¢",
    "€": "€ euro eur",
    "£": "£ gbp",
    "degree": "degree deg",
    "radian": "radian rad",
    "%": "% percent percentage pct",
    "am": "am a.m",
    "pm": "pm p.m",
    "unit": "unit",
}
_UNITS = {name: unit for unit, names in _UNIT_NAMES.items() for name in names.split()}
_MEASURES = set(_UNITS.values()) - {"unit"}
_BARE_UNITS = "|".join(sorted(map(re.escape, _UNITS), key=len, reverse=True))
_POWER = r"(?:\s*\^\s*(?:\{\s*\d\s*\}|\d))?"
_UNIT_TAIL = re.compile(
    rf"(?P<value>.*[\d}})]|.*\\pi|\d*[A-Za-z]?)\s*(?P<unit>"
    rf"\^\\circ\s*(?:\\text\{{\s*[CF]\s*\}}|[CF])?"
    rf"|%|\\text\{{[^{{}}]*\}}{_POWER}(?:\s*/\s*\\text\{{[^{{}}]*\}}{_POWER})?"
    rf"|(?:(?:square|cubic|sq|cu)\.?\s+)?(?:{_BARE_UNITS})(?:e?s)?{_POWER}"
    rf"(?:\s*(?:/|per)\s*(?:{_BARE_UNITS})(?:e?s)?{_POWER})?"
    rf"|(?<=\s)(?!and|or|not)[a-z]{{3,}}(?:\s(?!and|or|not)[a-z]+){{0,3}}"
    rf"|_\s*(?:\{{\s*\d+\s*\}}|\d+|\{{\s*\\text\{{[a-z]+\}}\s*\}}))\.?",
    re.IGNORECASE,
)
_CURRENCY = re.compile(r"([+-]?)\s*([$€£])\s*([\d.].*)")


@dataclass(frozen=True)
class Quantity:
    """A value with its unit: "" where none is written, words that are no unit kept as they are."""

    value: str
    unit: str = ""

    @property
    def measured(self) -> bool:
        """Whether the unit is one of measurement, so that another one contradicts it."""
        head = re.split(r"[\^/ ]", self.unit)[0]
        return head in _MEASURES or head == "base"


def quantity(text: str, *, letters: bool = True) -> Quantity:
    """Splits `5\\text{ cm}`, `90^\\circ`, `$5`, `50%`, `12_{7}` into value and unit.

    A single letter, as in `5 m`, is a unit only with `letters`.
    """
    if match := _CURRENCY.fullmatch(text):
        inner = quantity(match[3], letters=letters)
        return Quantity(match[1] + inner.value, match[2])
    match = _UNIT_TAIL.fullmatch(text)
    if match is None or not match["value"].strip():
        return Quantity(text)
    unit = match["unit"].strip()
    if not letters and re.match(r"[A-Za-z](?![A-Za-z.])", unit):
        return Quantity(text)
    if unit.startswith("_"):
        base = re.sub(r"\D", "", unit)
        value = match["value"].strip()
        if not re.fullmatch(r"[+-]?[0-9A-F]+", value) or not base:
            return Quantity(text)
        return Quantity(value, f"base {base}")
    if not re.search(r"\d|\\pi", match["value"]):
        return Quantity(text)
    return Quantity(match["value"].strip(), _unit_name(unit))


def _unit_name(unit: str) -> str:
    unit = unit.replace(r"^\circ", "degree").lower()
    unit = re.sub(r"\\text\{([^{}]*)\}", r"\1", unit).strip(" .")
    unit = re.sub(r"\b(?:square|sq)\.?\s+(\S+)", r"\1^2", unit)
    unit = re.sub(r"\b(?:cubic|cu)\.?\s+(\S+)", r"\1^3", unit)
    unit = re.sub(r"\s*(\S+)\s+squared", r"\1^2", re.sub(r"\s*(\S+)\s+cubed", r"\1^3", unit))
    unit = re.sub(r"\s*\^\s*\{?\s*(\d)\s*\}?", r"^\1", unit)
    unit = re.sub(r"\s*(?:/|\bper\b)\s*", "/", unit)
    words = re.split(r"([\^/ ]\d?)", unit)
    return "".join(_singular(word) for word in words)


def _singular(word: str) -> str:
    for form in (word, word.removesuffix("s"), word.removesuffix("es")):
        if form in _UNITS:
            return _UNITS[form]
    return word
