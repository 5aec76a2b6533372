"""Quantities: a value and its unit, and when two units contradict each other.

The rule: a unit may be missing on one side. Where both sides have one, the two must be the same
unit of measurement, or words that share their noun (`goats`, `stuffed goats`). Words that change a
number (`below`, `times`, `or`, `not`, …) are never a unit.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from bandpo.reward.notation.braces import split_list
from bandpo.reward.notation.numbers import numeral

_UNIT_NAMES = {
    "mm": "mm millimeter millimetre",
    "cm": "cm centimeter centimetre",
    "dm": "dm decimeter decimetre",
    "m": "m meter metre",
    "km": "km kilometer kilometre",
    "in": "in inch inches",
    "ft": "ft foot feet",
    "yd": "yd yard",
    "mi": "mi mile",
    "mg": "mg milligram",
    "g": "g gram gramme",
    "kg": "kg kilogram kilo",
    "ton": "ton tonne",
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
    "n": "newton",
    "j": "joule",
    "w": "watt",
    "v": "volt",
    "hz": "hz hertz",
    "$": "$ dollar usd buck",
    "cent": "cent ¢",
    "€": "€ euro eur",
    "£": "£ gbp",
    "¥": "¥ yuan rmb cny yen",
    "₹": "₹ rupee",
    "degree": "degree deg",
    "radian": "radian rad",
    "%": "% percent percentage pct",
    "unit": "unit",
}
_UNITS = {name: unit for unit, names in _UNIT_NAMES.items() for name in names.split()}
_MEASURES = (set(_UNITS.values()) | {"base", "mod"}) - {"unit"}
_BARE_UNITS = "|".join(sorted(map(re.escape, _UNITS), key=len, reverse=True))
_POWER = r"(?:\s*\^\s*(?:\{\s*-?\d\s*\}|\d))?"
_WORD = r"(?!(?:and|or|not)(?![a-z]))[a-z]+"
_PLACE = r"\\text\{[^{}]*\}"
_BASE_NAME = r"\\text\{\s*[a-z]+\s*\}"
_UNIT_TAIL = re.compile(
    rf"(?P<value>.*[\d}})!]|.*\\pi|\d*[A-Za-z]?)\s*(?P<unit>"
    rf"\^\\circ\s*(?:\\text\{{\s*[CF]\s*\}}|[CF])?"
    rf"|%|{_PLACE}{_POWER}(?:\s*(?:/|\\cdot)?\s*{_PLACE}{_POWER})*"
    rf"|\\frac\{{\s*{_PLACE}{_POWER}\s*\}}\{{\s*{_PLACE}{_POWER}\s*\}}"
    rf"|(?:(?:square|cubic|sq|cu)\.?\s+)?(?:{_BARE_UNITS})(?:e?s)?{_POWER}"
    rf"(?:\s*(?:/|per)\s*(?:{_BARE_UNITS})(?:e?s)?{_POWER})?"
    rf"|(?<=\s)(?=of\s|[a-z]{{3,}}){_WORD}(?:\s{_WORD}){{0,5}}"
    rf"|\(?\\pmod\s*(?:\{{\s*\d+\s*\}}|\d+)"
    rf"|\(?\s*(?:\\text\{{\s*mod\s*\}}|\\?mod|\\bmod)\s*\{{?\d+\}}?\)?"
    rf"|_\s*(?:\{{\s*\d+\s*\}}|\d+|\{{\s*{_BASE_NAME}\s*\}}|{_BASE_NAME}))\.?",
    re.IGNORECASE,
)
_CURRENCY = re.compile(r"([+-]?)\s*([$€£¥₹])\s*([+-]?[\d.\\].*)")
_BASE_WORDS = (
    "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
)
_BASES = _BASE_WORDS.split()
_DEGREES = re.compile(r"\^\\circ\s*(?!\s*(?:[CF]|\\text))")
# Words after a number that make another number, a comparison or a denial of it.
_CHANGING_WORDS = (
    "hundred thousand million billion trillion dozen score tenth tenths hundredths thousandths "
    "half halves third thirds fourth fourths fifth fifths squared cubed factorial plus minus times "
    "over divided multiplied mod modulo base power not no nor neither without except than fewest "
    "least most below under beneath between to until or and but is are isn was were wrong "
    "incorrect cannot prime if unless instead negative positive root remainder at approximately"
)
_CHANGING = frozenset((*_CHANGING_WORDS.split(), "one", *_BASES))
_UNTELLING = frozenset(("the", "a", "an", "of", "in", "per", "each", "all", "total"))


@dataclass(frozen=True)
class Quantity:
    """A value with its unit: "" where none is written, words that are no unit kept as they are."""

    value: str
    unit: str = ""

    @property
    def measured(self) -> bool:
        """Whether the unit is one of measurement, a base or a modulus."""
        return any(map(_is_measure, self.unit.split(";")))

    def contradicts(self, other: Quantity) -> bool:
        """Whether both have units, and different ones; a base is missing only in an answer."""
        if self.unit.startswith("base") and not other.unit:
            return True
        if not self.unit or not other.unit or self.unit == other.unit:
            return False
        if {self.unit, other.unit} in ({"degree", "degree c"}, {"degree", "degree f"}):
            return False
        if self.measured and other.measured:
            return True
        ours, theirs = _noun(self.unit), _noun(other.unit)
        return "unit" not in (ours, theirs) and ours != theirs


def _is_measure(unit: str) -> bool:
    return re.split(r"[\^/ ]", unit)[0] in _MEASURES


def _noun(unit: str) -> str:
    """The noun of a counted thing, before `of …` and the like: `goat` of `stuffed goats`."""
    head = re.split(r"\s(?:of|in|per|for|from|on|with|that|who|which|are)\s|[\^/]", unit)[0]
    words = [word for word in head.split() if word not in _UNTELLING]
    return _singular(words[-1]) if words else ""


def quantity(text: str, *, letters: bool = True) -> Quantity:
    """Splits `5\\text{ cm}`, `90^\\circ`, `$5`, `50%`, `12_{7}`, `3 \\pmod{7}` into value and unit.

    A single letter, as in `5 m`, is a unit only with `letters`. A list has the unit that all its
    members share; where they count different things, it is in the order written.
    """
    parts = split_list(text)
    if len(parts) > 1 and "mod" not in text:
        return _list(text, [_quantity(part.strip(), letters) for part in parts])
    return _quantity(text, letters)


def _list(text: str, members: list[Quantity]) -> Quantity:
    units = {member.unit for member in members}
    if units == {""}:
        return Quantity(text)
    values = ", ".join(member.value for member in members)
    if len(units - {""}) == 1:
        return Quantity(values, max(units))
    return Quantity(f"({values})", ";".join(member.unit for member in members))


def _quantity(text: str, letters: bool) -> Quantity:
    if match := _CURRENCY.fullmatch(text):
        inner = _quantity(match[3], letters)
        return Quantity(match[1] + inner.value, match[2])
    match = _UNIT_TAIL.fullmatch(text)
    if match is None or not match["value"].strip():
        return _in_degrees(text)
    value, unit = match["value"].strip(), match["unit"].strip()
    if not letters and re.match(r"[A-Za-z](?![A-Za-z./])", unit):
        return Quantity(text)
    if unit.startswith("_"):
        return _in_base(text, value, unit)
    if "mod" in unit and (modulus := re.search(r"\d+", unit)):
        return _residue(text, value, int(modulus[0]))
    if "\\begin" in value or _changes(unit):
        return Quantity(text)
    name = _unit_name(unit)
    if not re.search(r"\d|\\pi", value) and not (unit[0] == "\\" and _is_measure(name)):
        return Quantity(text)
    return Quantity(_in_degrees(value).value, name)


def _in_degrees(text: str) -> Quantity:
    """`180^\\circ - 2\\alpha` without the signs; degrees inside functions are converted before."""
    if "^\\circ" not in text:
        return Quantity(text)
    return Quantity(_DEGREES.sub("", text).strip(), "degree")


def _in_base(text: str, value: str, unit: str) -> Quantity:
    name = re.sub(r"\\text|[^0-9a-z]", "", unit.lower())
    base = str(2 + _BASES.index(name)) if name in _BASES else name
    value = re.sub(r"^\\text\{\s*(\w+)\s*\}$", r"\1", value).strip("() ")
    if not re.fullmatch(r"[+-]?[0-9A-F]+", value) or not base.isdecimal():
        return Quantity(text)
    return Quantity(value, f"base {base}") if base != "10" else Quantity(value)


def _residue(text: str, value: str, modulus: int) -> Quantity:
    """A congruence as its least residue, without the name of the unknown."""
    value = re.sub(r"^[A-Za-z]\w*\s*\\equiv\s*|^[A-Za-z]\s*=\s*", "", value).rstrip(" (,")
    residues = [numeral(part) for part in split_list(value)]
    if not modulus or not all(r is not None and r.denominator == 1 for r in residues):
        return Quantity(text)
    least = ", ".join(str(int(r) % modulus) for r in residues if r is not None)
    return Quantity(least, f"mod {modulus}")


def _changes(unit: str) -> bool:
    """Whether a word of the unit makes another number of the value."""
    words = re.findall(r"[a-z]+", unit.replace("\\text", "").lower())
    known = re.sub(r"(\w+) (?:squared|cubed)", r"\1", " ".join(words)).split()
    return any(word in _CHANGING for word in known) or re.search(r"[<>=;:,\"]", unit) is not None


def _unit_name(unit: str) -> str:
    unit = unit.replace(r"^\circ", "degree").lower()
    unit = re.sub(r"\\frac\{(.*?\})\s*\}\{(.*)\}", r"\1/\2", unit)
    unit = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", unit).strip(" .")
    unit = " ".join(unit.replace("\\cdot", " ").replace("per cent", "percent").split())
    unit = re.sub(r"\s+\^", "^", unit)
    unit = re.sub(r"\b(?:square|sq)\.?\s+(\S+)", r"\1^2", unit)
    unit = re.sub(r"\b(?:cubic|cu)\.?\s+(\S+)", r"\1^3", unit)
    unit = re.sub(r"\s*(\S+)\s+squared", r"\1^2", re.sub(r"\s*(\S+)\s+cubed", r"\1^3", unit))
    unit = re.sub(r"\s*\^\s*\{?\s*(-?\d)\s*\}?", r"^\1", unit)
    unit = re.sub(r"\s*(?:/|\bper\b)\s*", "/", unit)
    unit = re.sub(r"(\S+) (\S+?)\^-1", r"\1/\2", unit)
    unit = re.sub(r"(\S+) (\S+?)\^-(\d)", r"\1/\2^\3", unit)
    words = re.split(r"([\^/ ]\d?)", " ".join(unit.split()))
    return "".join(_singular(word) for word in words)


def _singular(word: str) -> str:
    for form in (word, word.removesuffix("s"), word.removesuffix("es")):
        if form in _UNITS:
            return _UNITS[form]
    return word.removesuffix("s") if len(word) > 3 else word
