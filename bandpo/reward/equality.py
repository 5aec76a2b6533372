"""Whether an answer equals the reference answer: math-verify, with what it gets wrong mended.

Runs in a worker process only. What math-verify 0.9 gets wrong, and what is done about it:

wrongly false, mended by `bandpo.reward.notation` before parsing
    thousands separators `1 234`, `10\\,000`, `1{,}234`; decimal comma `0,5`; `1e3`; mixed numbers
    `1 1/2`; `90°`, `½`, `√2`, full-width and zero-width characters; trailing punctuation; fences
    (`$…$`, `**…**`); percent `50\\%` (also = 0.5); `x \\in`, `x =` in lists; `\\text{…}` words in
    another case; choice letters `(B)`, `B.`, `B) 5`; an inequality for an interval.
wrongly true, refused here
    0.333333 for 1/3 and 1.41421356 for √2 (decimals are made exact); `5=7` for 7 and `1=2=3` (each
    side of a chain must equal the reference); 5 m for 5 km (units of measurement that differ);
    `(1,2)` for `{1,2}`; units that math-verify removes although they are variables.
wrongly earned
    `37+14` or `\\frac{102}{2}` for 51: where the reference is a rational number in lowest form the
    answer must be a numeral (`notation.numeral`); where it is an irrational number, a sum with
    more terms than the reference has is `unevaluated` as well.
"""

from __future__ import annotations

import logging
import re
from typing import Any, Literal

import sympy
from latex2sympy2_extended import NormalizationConfig
from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

from bandpo.reward import notation
from bandpo.reward.notation import Quantity

Verdict = Literal["equal", "unevaluated", "different", "unparsed", "too_large", "bad_gold"]

logging.getLogger("math_verify").setLevel(logging.CRITICAL)
logging.getLogger("latex2sympy2_extended").setLevel(logging.CRITICAL)

# Units are split off before; math-verify's own removal would take the variable of `5t` for one.
_LATEX = LatexExtractionConfig(
    boxed_match_priority=0,
    normalization_config=NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="last"
    ),
)
_EXPRESSION = ExprExtractionConfig()
_ARITHMETIC = re.compile(r"[\d\s.+\-*/^()]+")
_FLOAT_DIGITS = 12

_SYMBOL = r"(?:\\?[A-Za-z]+(?:_\{?\w+\}?)?(?:\([A-Za-z](?:,[A-Za-z])*\))?|\\text\{[^{}]*\})"
_ASSIGNED = re.compile(rf"\s*{_SYMBOL}\s*(?:=|\\in(?![A-Za-z])|:)\s*")
_EQUALS = re.compile(r"(?<![<>!\\])=")
_CHOICE = re.compile(r"\(?\s*([A-Ja-j])\s*\)?")
_CHOSEN = re.compile(r"(?:\(\s*([A-J])\s*\)|([A-J])\s*[.):])\s*(.*)", re.DOTALL)
_WORDS = re.compile(r"[A-Za-z][A-Za-z' ,.-]*")
_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_OR = re.compile(
    r"\s*(?:\\text\{\s*,?\s*(?:and|or)\s*\}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])|;)\s*"
)


def judge(answer: str, gold: str, *, free: bool = False) -> Verdict:
    """Compares an answer with the reference; with `free`, any answer that the text ends in."""
    if notation.too_large(gold):
        return "bad_gold"
    reference = _Reference(gold)
    if not reference.readable:
        return "bad_gold"
    if free:
        return "equal" if _verify(reference.parsed, _parse_free(answer)) else "different"
    if notation.too_large(answer):
        return "too_large"
    return reference.judge(notation.canonical(answer))


def readable(gold: str) -> bool:
    """Whether a reference answer can be compared with anything."""
    return not notation.too_large(gold) and _Reference(gold).readable


def self_test() -> None:
    """Raises RuntimeError where this machine's math-verify misjudges the plainest cases.

    A broken installation must not become a run whose rewards are all zero. It also warms the
    parser's caches for every process forked from this one.
    """
    cases = {
        (r"\frac{1}{2}", "0.5"): "equal",
        (r"2\sqrt{3}", r"\sqrt{12}"): "equal",
        (r"\{2, 1\}", "1,2"): "equal",
        ("x^2+2x+1", "(x+1)^2"): "equal",
        ("[0,1)", r"0 \le x < 1"): "equal",
        ("2", "3"): "different",
        (r"\frac{1}{3}", r"\frac{\pi}{3}"): "different",
    }
    for (answer, gold), expected in cases.items():
        if (verdict := judge(answer, gold)) != expected:
            raise RuntimeError(f"math-verify finds {answer} {verdict} to {gold}, not {expected}")


class _Reference:
    """A reference answer, read once, and the comparison that its kind calls for."""

    def __init__(self, gold: str) -> None:
        self.text = notation.canonical(gold)
        self.quantity = notation.quantity(self.text)
        self.choice, self.words = _choice(self.text), _words(self.text)
        self.parsed = _parse(self.quantity.value)
        self.readable = bool(self.choice or self.words or self.parsed)

    def judge(self, answer: str) -> Verdict:
        if not answer:
            return "unparsed"
        if answer == self.text:
            return "equal"
        if self.choice:
            return _judge_choice(answer, self.choice)
        if self.words:
            return "equal" if _words(answer, bare=True) == self.words else "different"
        return self._judge_math(answer)

    def _judge_math(self, answer: str) -> Verdict:
        answer = self._without_assignment(_OR.sub(",", answer))
        sides = [side.strip() for side in _EQUALS.split(answer)]
        if len(sides) > 1 and not _EQUALS.search(self.text):
            return self._judge_chain(sides)
        if r"\approx" in answer and r"\approx" not in self.text:
            answer = answer.split(r"\approx")[0].strip()
        given = notation.quantity(answer)
        if given.measured and self.quantity.measured and not self._same_unit(given):
            return "different"
        return self._judge_value(given)

    def _judge_value(self, given: Quantity) -> Verdict:
        value, reference = given.value, self.quantity.value
        if notation.numeral(reference) is not None and re.fullmatch(r"[+-]?\d+,\d+", value):
            value = value.replace(",", ".")  # a decimal comma: the reference is one number
        if _brackets(value) != _brackets(reference) and {
            _brackets(value),
            _brackets(reference),
        } == {"()", "{}"}:
            return "different"
        parsed = _parse(value)
        if not parsed:
            return "unparsed"
        scales = {
            (False, False): (1,),
            (True, True): (1,),
            (True, False): (1, 100),
            (False, True): (1, 100),
        }[given.unit == "%", self.quantity.unit == "%"]
        for scale in scales:
            scaled_gold = self.parsed if given.unit == "%" else _scaled(self.parsed, scale)
            scaled_answer = _scaled(parsed, scale) if given.unit == "%" else parsed
            if _verify(scaled_gold, scaled_answer):
                return "equal" if self._lowest_form(value, parsed) else "unevaluated"
        return "different"

    def _judge_chain(self, sides: list[str]) -> Verdict:
        """`a = b = c`: every side but names must equal the reference, the last be evaluated."""
        values = [side for side in sides if not re.fullmatch(_SYMBOL, side)]
        if not values or values[-1] != sides[-1] or len(values) > 4:
            return "different"
        verdicts = [self._judge_math(side) for side in values]
        if all(verdict in ("equal", "unevaluated") for verdict in verdicts):
            return verdicts[-1]
        return "different"

    def _without_assignment(self, answer: str) -> str:
        if _EQUALS.search(self.text) or r"\in" in self.text:
            return answer
        if _EQUALS.search(answer.replace("=", "", 1)) and "," not in answer:
            return answer  # a chain
        return ",".join(_ASSIGNED.sub("", part, count=1) for part in answer.split(","))

    def _same_unit(self, given: Quantity) -> bool:
        percent = "%" in (given.unit, self.quantity.unit)
        return given.unit == self.quantity.unit or percent

    def _lowest_form(self, value: str, parsed: list[Any]) -> bool:
        expression = self.parsed[0] if self.parsed else None
        if not isinstance(expression, sympy.Expr) or expression.free_symbols:
            return True
        reference = self.quantity.value
        if expression.is_Rational or notation.numeral(reference) is not None:
            return notation.numeral(reference) is None or notation.numeral(value) is not None
        return _terms(parsed[0]) <= max(_terms(expression), _terms(sympy.expand(expression)))


def _terms(expression: Any) -> int:
    return len(expression.args) if isinstance(expression, sympy.Add) else 1


def _scaled(parsed: list[Any], scale: int) -> list[Any]:
    return [e / scale if isinstance(e, sympy.Expr) else e for e in parsed] if scale != 1 else parsed


def _parse(value: str) -> list[Any]:
    """math-verify's reading of one answer; empty where it has none."""
    value = notation.exact(_mixed(_TEXT.sub(r" \\text{\1} ", value)))
    boxed = rf"\boxed{{{value}}}"
    parsed = parse(boxed, [_LATEX], fallback_mode="no_fallback", parsing_timeout=None)
    if not parsed and _ARITHMETIC.fullmatch(value):
        parsed = parse(value, [_EXPRESSION], fallback_mode="no_fallback", parsing_timeout=None)
    return parsed


def _parse_free(text: str) -> list[Any]:
    targets = [_LATEX, _EXPRESSION]
    return parse(text, targets, fallback_mode="no_fallback", parsing_timeout=None)


def _verify(gold: list[Any], answer: list[Any]) -> bool:
    return verify(
        gold,
        answer,
        float_rounding=_FLOAT_DIGITS,
        allow_set_relation_comp=True,
        timeout_seconds=None,
    )


def _mixed(value: str) -> str:
    number = notation.numeral(value)
    if number is None:
        return value
    return (
        rf"\frac{{{number.numerator}}}{{{number.denominator}}}"
        if number.denominator > 1
        else str(number)
    )


def _brackets(value: str) -> str:
    value = value.replace("\\{", "{").replace("\\}", "}")
    return value[:1] + value[-1:] if "," in value and value[:1] in ("(", "[", "{") else ""


def _choice(text: str) -> str | None:
    bare = _TEXT.sub(r"\1", text).strip()
    match = re.fullmatch(r"\(?\s*([A-J])\s*\)?", bare)
    return match[1] if match else None


def _judge_choice(answer: str, choice: str) -> Verdict:
    bare = _TEXT.sub(r"\1", answer).strip()
    if match := _CHOICE.fullmatch(bare):
        return "equal" if match[1].upper() == choice else "different"
    if match := _CHOSEN.match(bare):
        return "equal" if (match[1] or match[2]) == choice else "different"
    return "different"


def _words(text: str, bare: bool = False) -> str | None:
    """A verbal answer without case, articles and punctuation; None for anything mathematical.

    Words without `\\text` count where `bare` allows it or where they are too long for variables.
    """
    inner = _TEXT.sub(r" \1 ", text)
    marked = _TEXT.search(text) is not None
    if not _WORDS.fullmatch(inner.strip()):
        return None
    words = re.findall(r"[a-z]+", inner.lower())
    if not (marked or bare or any(len(word) > 3 for word in words)):
        return None
    return "".join(word for word in words if word not in ("the", "a", "an")) or None
