"""Whether an answer equals the reference answer: math-verify, with fixes for its errors.

Runs in a worker process only. The errors of math-verify 0.9, and their fixes:

wrongly false, fixed by `bandpo.reward.notation` before parsing
    thousands separators `1 234`, `10\\,000`, `1{,}234`; decimal comma `0,5`; `1e3`; mixed numbers
    `1 1/2`; `90°`, `½`, `√2`, full-width and zero-width characters; trailing punctuation; fences
    (`$…$`, `**…**`); percent `50\\%` (also = 0.5); `x \\in`, `x =` in lists; `\\text{…}` words in
    another case; choice letters `(B)`, `B.`, `B) 5`; an inequality for an interval.
wrongly true, refused here
    0.333333 for 1/3 and 1.41421356 for √2 (decimals are made exact); `5=7` for 7 and `1=2=3` (each
    side of a chain must equal the reference); 5 m for 5 km (units of measurement that differ);
    `(1,2)` for `{1,2}`; units that math-verify removes although they are variables.
wrongly earned
    `37+14` or `\\frac{102}{2}` for 51: where the reference is a rational number in lowest form, the
    answer must be one (`no_numeral` otherwise, and nothing is computed); where it is an irrational
    number, a sum of more terms than the reference needs is `unevaluated`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from typing import Any, Literal

import sympy
from latex2sympy2_extended import NormalizationConfig
from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

from bandpo.reward import notation
from bandpo.reward.notation import Quantity

Verdict = Literal[
    "equal", "no_numeral", "unevaluated", "different", "unparsed", "too_large", "bad_gold"
]

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

# What may stand left of an answer: x, a_{10}, f(2), P(A), \angle ABC, \text{Area}; nothing that
# computes, since `2x = 6` does not say that something is 6.
_NAME = re.compile(r"(?=[^=]*[A-Za-z])(?![0-9])(?:[A-Za-z0-9\\{}\[\]|_' ]|\([A-Za-z0-9\\{}, ]*\))+")
_ASSIGNED = re.compile(rf"\s*({_NAME.pattern}?)\s*(?:=|\\in(?![A-Za-z])|\\approx(?![A-Za-z]))\s*")
_EQUALS = re.compile(r"(?<![<>!\\])=")
_APPROX = re.compile(r"\\approx(?![A-Za-z])")
_OR = re.compile(
    r"\s*,?\s*(?:\\text\{\s*,?\s*(?:and|or)\s*\}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])|;)\s*"
)
_SINGLETON = re.compile(r"^\\\{([^,{}]*)\\\}$")  # the solution set {3} is 3
_INEQUALITIES = (sympy.Lt, sympy.Le, sympy.Gt, sympy.Ge)
_MAX_CHAIN = 4


def judge(answer: str, gold: str, *, free: bool = False, lowest_form: bool = True) -> Verdict:
    """Compares an answer with the reference; with `free`, math-verify finds it in the text."""
    if notation.too_large(gold):
        return "bad_gold"
    reference = _Reference(gold, lowest_form)
    if not reference.readable:
        return "bad_gold"
    if notation.too_large(answer):
        return "too_large"
    answer = _found_in(answer) if free else answer
    verdict = reference.judge(notation.canonical(answer))
    if verdict != "equal" and reference.is_list and (listed := notation.spread(answer)) != answer:
        return reference.judge(notation.canonical(listed))  # 30,150 for the angles 30 and 150
    return verdict


def self_test() -> None:
    """Raises RuntimeError where this machine's math-verify is wrong about the simplest cases.

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
    """A reference answer, read once, with the comparison for its kind."""

    def __init__(self, gold: str, lowest_form: bool) -> None:
        self.lowest_form = lowest_form
        self.text = notation.canonical(gold)
        self.labelled = notation.labelled(self.text)
        if self.labelled and self.labelled[1]:
            self.text = notation.canonical(self.labelled[1])  # `(D) 12` is answered by D and by 12
        else:
            self.labelled = None
        value = _without_name(self.text)
        value = value if notation.is_constant(value) else self.text  # x = 5 is 5, y = 2x stays
        self.quantity = notation.quantity(_OR.sub(",", value), letters=False)
        self.literal = notation.literal(self.text)
        self.numeral = notation.numeral(self.quantity.value)
        self.parsed = _parse(self.quantity.value)
        self.is_equation = _EQUALS.search(self.quantity.value) is not None
        self.is_constant = notation.is_constant(self.quantity.value)
        self.is_list = len(notation.split_list(self.text)) > 1
        self.pieces = notation.pieces(self.text)
        self.readable = bool(self.literal or self.pieces or self.parsed)

    def judge(self, answer: str) -> Verdict:
        """Compares a canonical answer."""
        if not answer:
            return "unparsed"
        if answer == self.text:
            return "equal"
        if self.labelled and (given := notation.labelled(answer)):
            return "equal" if self._chooses(*given) else "different"
        if self.literal:
            answered = self.literal.answered_by(_without_name(answer))
            return "equal" if answered else "different"
        if (same := notation.same_time(answer, self.text)) is not None:
            return "equal" if same else "different"
        if self.pieces:
            return "equal" if self._same_pieces(notation.pieces(answer) or []) else "different"
        answer = notation.with_argument(answer, self.text)
        return self._judge_math(_OR.sub(",", answer))

    def _same_pieces(self, given: list[tuple[str, str]]) -> bool:
        """Whether each case of a function has its equal, in any order."""
        left = list(given)
        for piece in self.pieces or []:
            match = next((other for other in left if _same_piece(piece, other)), None)
            if match is None:
                return False
            left.remove(match)
        return not left

    def _chooses(self, letter: str, text: str) -> bool:
        """Whether the letter is the reference's, and the text beside it, if any, too."""
        right = self.labelled is not None and letter == self.labelled[0]
        return right and (not text or self.judge(text) == "equal")

    def _judge_math(self, answer: str) -> Verdict:
        if not self.is_equation:
            parts = notation.split_list(answer)
            sides = _EQUALS.split(answer)
            if len(parts) == 1 and len(sides) > 1:
                return self._judge_chain([side.strip() for side in sides])
            answer = ",".join(_without_name(part) for part in parts)
        if _APPROX.search(answer) and not _APPROX.search(self.text):
            answer = _APPROX.split(answer)[0] or _APPROX.sub("", answer)  # the exact side
        return self._judge_value(self._quantity(answer))

    def _quantity(self, answer: str) -> Quantity:
        return notation.quantity(answer.strip(), letters=self.is_constant)

    def _judge_chain(self, sides: list[str]) -> Verdict:
        """`a = b = c`: every side but names must equal the reference, the last be evaluated."""
        values = [side for side in sides[:-1] if not _is_name(side)] + sides[-1:]
        if len(values) > _MAX_CHAIN:
            return "different"
        given = [self._quantity(value) for value in values]
        if not all(self._equals(side, _parse(side.value)) for side in given[:-1]):
            return "different"
        return self._judge_value(given[-1])

    def _judge_value(self, given: Quantity) -> Verdict:
        value = _SINGLETON.sub(r"\1", given.value)
        if given.contradicts(self.quantity):
            return "different"
        if self.numeral is not None:
            value = notation.single_number(value)  # the reference is one number: this is no list
        if self.lowest_form and self.numeral is not None and notation.numeral(value) is None:
            # Whatever it comes to, it is not evaluated: no tower of powers is worth computing.
            return "no_numeral" if re.search(r"\w", value) else "unparsed"
        if {_brackets(value), _brackets(self.quantity.value)} == {"()", "{}"}:
            return "different"
        parsed = _parse(value)
        if not parsed:
            return "unparsed"
        if not self._equals(given, parsed):
            return "different"
        return "equal" if self._in_lowest_form(parsed[0]) else "unevaluated"

    def _equals(self, given: Quantity, parsed: list[Any]) -> bool:
        return any(_verify(*reading) for reading in self._readings(given.unit, parsed))

    def _readings(self, unit: str, parsed: list[Any]) -> Iterator[tuple[list[Any], list[Any]]]:
        """Reference and answer as written, then the one in percent as a fraction of one."""
        yield self.parsed, parsed
        if unit == "%" != self.quantity.unit:
            yield self.parsed, _hundredth(parsed)
        if unit != "%" == self.quantity.unit:
            yield _hundredth(self.parsed), parsed
        if {unit, self.quantity.unit} == {"", "degree"}:
            yield _radians(self.parsed, self.quantity.unit), _radians(parsed, unit)

    def _in_lowest_form(self, answer: Any) -> bool:
        """Whether an irrational number is a sum of no more terms than the reference needs."""
        reference = self.parsed[0]
        if not (self.lowest_form and isinstance(reference, sympy.Expr)):
            return True
        if reference.free_symbols or reference.is_Rational:
            return True
        return _terms(answer) <= max(_terms(reference), _terms(sympy.expand(reference.doit())))


def _same_piece(gold: tuple[str, str], answer: tuple[str, str]) -> bool:
    return all(
        theirs == ours or judge(theirs, ours, lowest_form=False) == "equal"
        for ours, theirs in zip(gold, answer, strict=True)
    )


def _is_name(text: str) -> bool:
    computes = notation.is_constant(text) and len(text) > 1
    return _NAME.fullmatch(text) is not None and not computes


def _without_name(answer: str) -> str:
    match = _ASSIGNED.match(answer)
    return answer[match.end() :] if match and _is_name(match[1]) else answer


def _terms(expression: Any) -> int:
    if not isinstance(expression, sympy.Add):
        return 1
    return sum(_terms(term) for term in expression.args)


def _hundredth(parsed: list[Any]) -> list[Any]:
    return [e / 100 if isinstance(e, sympy.Expr) else e for e in parsed]


def _radians(parsed: list[Any], unit: str) -> list[Any]:
    scale = sympy.pi / 180 if unit == "degree" else 1
    return [e * scale if isinstance(e, sympy.Expr) else e for e in parsed]


def _parse(value: str) -> list[Any]:
    """math-verify's reading of one answer; empty where it has none."""
    number = notation.numeral(value)
    latex = notation.exact(value) if number is None else notation.fraction(number)
    parsed = parse(
        rf"\boxed{{{latex}}}", [_LATEX], fallback_mode="no_fallback", parsing_timeout=None
    )
    if not parsed and _ARITHMETIC.fullmatch(latex):
        parsed = parse(latex, [_EXPRESSION], fallback_mode="no_fallback", parsing_timeout=None)
    if notation.is_constant(latex):
        parsed = [_with_imaginary_unit(expression) for expression in parsed]
    return [_solution_set(expression) for expression in parsed]


def _with_imaginary_unit(expression: Any) -> Any:
    if not isinstance(expression, sympy.Expr):
        return expression
    return expression.xreplace({s: sympy.I for s in expression.free_symbols if s.name == "i"})


def _solution_set(expression: Any) -> Any:
    """`x <= 3, x >= 5` as the union of the solutions of its inequalities."""
    if isinstance(expression, sympy.FiniteSet) and expression.args:
        relations = [a for a in expression.args if isinstance(a, _INEQUALITIES)]
        symbols = {symbol for relation in relations for symbol in relation.free_symbols}
        if len(relations) == len(expression.args) > 1 and len(symbols) == 1:
            return sympy.Union(*(relation.as_set() for relation in relations))
    return expression


def _found_in(text: str) -> str:
    """The piece of a text that math-verify's own extraction reads an answer from."""
    found = parse(text, [_LATEX, _EXPRESSION], parsing_timeout=None)
    return next((piece for piece in found if isinstance(piece, str)), "")


def _verify(gold: list[Any], answer: list[Any]) -> bool:
    return verify(
        gold,
        answer,
        float_rounding=_FLOAT_DIGITS,
        allow_set_relation_comp=True,
        timeout_seconds=None,
    )


def _brackets(value: str) -> str:
    """The pair of brackets around a list: "()" of a tuple, "{}" of a set, "" of a bare list."""
    value = value.replace("\\{", "{").replace("\\}", "}").strip()
    inner = value[1:-1]
    if "," not in inner or value[0] not in "([{" or value[-1] not in ")]}":
        return ""
    depth = 0
    for sign in inner:
        depth += (sign in "([{") - (sign in ")]}")
        if depth < 0:
            return ""  # `(1,2),(3,4)`: the first bracket closes before the end
    return value[0] + value[-1]
