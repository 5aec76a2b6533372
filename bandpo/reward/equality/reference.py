"""A reference answer, read once, and the verdict on answers to it.

decimals are exact: 0.333333 is not 1/3, 1.41421356 is not √2.
a chain `a = b = c` is right where each side but names equals the reference: `5=7` is not 7.
units that differ contradict (5 m is not 5 km); one that is missing does not.
`(1,2)` is no set, `\\{1,2\\}` no point; a bare list may be either, in its order for a point.
unevaluated answers are a matter of `lowest_form`, see `bandpo.reward.equality.form`.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

from bandpo.reward import notation
from bandpo.reward.equality.comparison import ordered_elements, same, same_in_any_order
from bandpo.reward.equality.form import is_evaluated, is_unfinished
from bandpo.reward.equality.names import Named, is_name, is_quantity, named_parts, sides, squeezed
from bandpo.reward.equality.reading import hundredth, in_radians, read, renumbered
from bandpo.reward.notation import Quantity
from bandpo.reward.score import LowestForm

Verdict = Literal[
    "equal",
    "different",
    "other_unit",
    "other_brackets",
    "no_numeral",
    "unevaluated",
    "unparsed",
    "too_large",
    "bad_gold",
]

logging.getLogger("math_verify").setLevel(logging.CRITICAL)
logging.getLogger("latex2sympy2_extended").setLevel(logging.CRITICAL)

_EXTRACTIONS = [LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()]

_APPROX = re.compile(r"\\approx(?![A-Za-z])")
_OR = re.compile(
    r"\s*,?\s*(?:\\text\{\s*,?\s*(?:and|or)\s*\}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])|;)\s*"
)
_AND = re.compile(r"\\text\{\s*,?\s*and\s*\}|(?<![A-Za-z\\])and(?![A-Za-z])")
_INEQUALITY = re.compile(r"[<>]|\\(?:le|ge)(?![A-Za-z])")
_SINGLETON = re.compile(r"^\\\{((?!\\emptyset)[^,{}|:]*)\\\}$")  # the solution set {3} is 3
# The parser drops primes and signs of currencies, and takes words for factors: 0 not 5 would be 0.
_MISREAD = re.compile(r"'|\$|(?<!_)(?<!_\{)\\text\{\s*[A-Za-z]{2,}\s*\}")
_MAX_CHAIN = 4


def judge(
    answer: str, gold: str, *, free: bool = False, lowest_form: LowestForm = "restated"
) -> Verdict:
    """Compares an answer with the reference; with `free`, math-verify finds it in the text."""
    if notation.too_large(gold):
        return "bad_gold"
    reference = _reference(gold, lowest_form)
    if not reference.readable:
        return "bad_gold"
    if notation.too_large(answer):
        return "too_large"
    answer = _found_in(answer) if free else answer
    verdict = reference.judge(notation.canonical(answer))
    if verdict == "equal":
        return verdict
    # 30,150 is a number, but the angles 30 and 150 where the other side is a list
    if reference.is_list and (listed := notation.spread(answer)) != answer:
        return reference.judge(notation.canonical(listed))
    if (listed := notation.spread(gold)) != gold and len(notation.split_list(answer)) > 1:
        return _reference(listed, lowest_form).judge(notation.canonical(answer))
    return verdict


@functools.lru_cache(maxsize=128)
def _reference(gold: str, lowest_form: LowestForm) -> _Reference:
    """A reference is read once for the many answers of its group."""
    return _Reference(notation.canonical(gold), lowest_form)


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
        ("v+V", "2v"): "different",
        ("e^{-999}", r"\sin 0"): "different",
    }
    for (answer, gold), expected in cases.items():
        if (verdict := judge(answer, gold)) != expected:
            raise RuntimeError(f"math-verify finds {answer} {verdict} to {gold}, not {expected}")


class _Reference:
    """A reference answer, read once, with the comparison for its kind."""

    def __init__(self, text: str, lowest_form: LowestForm) -> None:
        self.lowest_form = lowest_form
        label = notation.labelled(text)
        self.label = label if label and label[1] else None
        # `(D) 12` is answered by D and by 12
        self.text = text = notation.canonical(self.label[1]) if self.label else text
        self.literal, self.pieces = notation.literal(text), notation.pieces(text)
        parts = named_parts(_OR.sub(", ", text))
        names = [part.name for part in parts]
        self.parts = parts if all(names) else None
        self.is_record = self.parts is not None and len(set(names)) == len(names) > 1
        value = ", ".join(part.value for part in parts) if self.parts else _OR.sub(", ", text)
        chain = sides(value) if len(parts) == 1 else [value]
        if len(chain) > 1 and all(map(notation.is_constant, chain[:-1])):
            value = chain[-1]  # 37 + 14 = 51 is 51
        self.is_equation = len(sides(value)) > 1
        self.quantity = notation.quantity(value.strip(), letters=False)
        self.is_constant = notation.is_constant(self.quantity.value)
        self.is_list = len(notation.split_list(self.text)) > 1
        self.numeral = notation.numeral(self.quantity.value)
        self.parsed = read(self.quantity.value)
        self.readable = bool(self.literal or self.pieces or self.parsed or self._values)

    @property
    def _values(self) -> list[tuple[Any, ...]]:
        """The readings of a record's values, in order; empty where one has none."""
        values = [read(notation.quantity(part.value).value) for part in self.parts or ()]
        return values if all(values) else []

    def judge(self, answer: str) -> Verdict:
        """Compares a canonical answer."""
        if not answer:
            return "unparsed"
        if squeezed(answer) == squeezed(self.text):
            return "equal"
        if self.label and (given := notation.labelled(answer)):
            return "equal" if self._chooses(*given) else "different"
        if self.literal:
            answered = self.literal.answered_by(_without_name(answer))
            return "equal" if answered else "different"
        if (same_time := notation.same_time(answer, self.text)) is not None:
            return "equal" if same_time else "different"
        if self.pieces:
            given_pieces = notation.pieces(answer) or []
            right = same_in_any_order(self.pieces, given_pieces, _same_piece)
            return "equal" if right else "different"
        answer = notation.with_argument(answer, self.text)
        if _AND.search(answer) and _INEQUALITY.search(answer) and not _AND.search(self.text):
            return "unparsed"  # conditions that hold together are no list of cases
        return self._judge_math(_OR.sub(", ", answer))

    def _chooses(self, letter: str, text: str) -> bool:
        """Whether the letter is the reference's, and the text beside it, if any, too."""
        right = self.label is not None and letter == self.label[0]
        return right and (not text or self.judge(text) == "equal")

    def _judge_math(self, answer: str) -> Verdict:
        parts = named_parts(answer)
        if self.is_record:
            return self._judge_record(answer, parts)
        if self.is_equation:
            return self._judge_equation(self.quantity.value, answer)
        if self.parts and not self.is_constant:
            return self._judge_formula(answer, parts)
        if len(parts) == 1 and len(sides(answer)) > 1:
            return self._judge_chain(sides(answer))
        named = any(part.name for part in parts)
        return self._judge_value(", ".join(part.value for part in parts) if named else answer)

    def _judge_record(self, answer: str, parts: Sequence[Named]) -> Verdict:
        """`x = 3, y = 4`: values by their names, or all without names, in the same order."""
        assert self.parts is not None
        values, names = self._values, [part.name for part in self.parts]
        if not values:
            return "different"
        given = {part.name: read(notation.quantity(part.value).value) for part in parts}
        if set(given) == set(names) and len(parts) == len(names):
            pairs = [(gold, given[name]) for name, gold in zip(names, values, strict=True)]
        elif not any(part.name for part in parts) and _brackets(answer) != "{}":
            parsed = read(answer)
            if not parsed:
                return "unparsed"
            elements = ordered_elements(parsed[0]) or ()
            if len(elements) != len(values):
                return "different"
            pairs = [(gold, (element,)) for gold, element in zip(values, elements, strict=True)]
        else:
            return "different"
        return "equal" if all(_any_same(*pair) for pair in pairs) else "different"

    def _judge_formula(self, answer: str, parts: Sequence[Named]) -> Verdict:
        """`y = 2x`, `f(x) = x^2`: the formula, under this name, another or none; or an equation."""
        assert self.parts is not None
        gold = ", ".join(part.value for part in self.parts)
        named = any(part.name for part in parts)
        value = ", ".join(part.value for part in parts) if named else answer
        renamed = all(_may_rename(*pair) for pair in zip(self.parts, parts, strict=False))
        if renamed and all(part.name or len(sides(part.value)) == 1 for part in parts):
            verdict = self._judge_value(value)
            if verdict in ("equal", "other_unit"):
                return verdict
        if len(sides(answer)) > 1 and len(self.parts) == 1:
            return self._judge_equation(f"{self.parts[0].name}={gold}", answer)
        return "different"

    def _judge_equation(self, gold: str, answer: str) -> Verdict:
        """A relation that says more than the value of a name: only an equivalent one will do."""
        parsed = read(answer)
        if not parsed:
            return "unparsed"
        return "equal" if _any_same(read(gold), parsed) else "different"

    def _judge_chain(self, chain: list[str]) -> Verdict:
        """`a = b = c`: every side but names must equal the reference, the last be evaluated."""
        is_named = is_name if self.parts else is_quantity
        if len(chain) == 2 and is_named(chain[1]) and not is_named(chain[0]):
            chain = chain[::-1]  # 5 = x
        values = [side for side in chain[:-1] if not is_named(side)] + chain[-1:]
        if len(values) > _MAX_CHAIN or len(set(map(squeezed, chain))) < len(chain):
            return "different"  # too much to compute, or `7 = 7`, which says nothing
        for side in values[:-1]:
            given = notation.quantity(side, letters=self.is_constant)
            if not self._equals(given, read(given.value)):
                return "different"
        return self._judge_value(values[-1])

    def _judge_value(self, answer: str) -> Verdict:
        if _APPROX.search(answer) and not _APPROX.search(self.text):
            answer = _APPROX.split(answer)[0] or _APPROX.sub("", answer)  # the exact side
        given = notation.quantity(answer.strip(), letters=self.is_constant)
        value = _only_element(given.value)
        if given.contradicts(self.quantity):
            return "other_unit"
        if self.numeral is not None:
            value = notation.single_number(value)  # the reference is one number: this is no list
        if self.numeral is not None and notation.numeral(value) is None:
            if self.lowest_form == "strict":
                # Whatever it comes to, it is not evaluated.
                return "no_numeral" if re.search(r"\w", value) else "unparsed"
            if self.lowest_form == "restated" and is_unfinished(value):
                return "unevaluated"
        if not set(_MISREAD.findall(value)) <= set(_MISREAD.findall(self.quantity.value)):
            return "unparsed"
        if {_brackets(value), _brackets(self.quantity.value)} == {"()", "{}"}:
            return "other_brackets"
        parsed = read(value)
        if not parsed:
            return "unparsed"
        if not self._equals(given, parsed):
            return "different"
        return (
            "equal" if is_evaluated(parsed[0], self.parsed[0], self.lowest_form) else "unevaluated"
        )

    def _equals(self, given: Quantity, parsed: Sequence[Any]) -> bool:
        return any(_any_same(*reading) for reading in self._readings(given.unit, parsed))

    def _readings(
        self, unit: str, parsed: Sequence[Any]
    ) -> Iterator[tuple[Sequence[Any], Sequence[Any]]]:
        """Reference and answer as written, then percent and degrees as numbers."""
        yield self.parsed, parsed
        for name, as_number in (("%", hundredth), ("degree", in_radians)):
            if unit == name and not self.quantity.unit:
                yield self.parsed, as_number(parsed)
            if self.quantity.unit == name and not unit:
                yield as_number(self.parsed), parsed


def _any_same(gold: Sequence[Any], answer: Sequence[Any]) -> bool:
    return any(same(one, renumbered(one, other)) for one in gold for other in answer)


def _same_piece(gold: tuple[str, str], answer: tuple[str, str]) -> bool:
    return all(
        theirs == ours or judge(theirs, ours, lowest_form="off") == "equal"
        for ours, theirs in zip(gold, answer, strict=True)
    )


def _without_name(answer: str) -> str:
    parts = named_parts(answer)
    return parts[0].value if len(parts) == 1 else answer


def _may_rename(gold: Named, given: Named) -> bool:
    """Whether another name says nothing else: `x = 3y` is not `y = 3x`, `f(x) = 2x` is `y = 2x`."""
    if not given.name or given.name == gold.name:
        return True
    return given.name not in gold.value and gold.name not in given.value


def _found_in(text: str) -> str:
    """The piece of a text that math-verify's own extraction reads an answer from."""
    found = parse(text, _EXTRACTIONS, parsing_timeout=None)
    return next((piece for piece in found if isinstance(piece, str)), "")


def _only_element(value: str) -> str:
    """The element of a set of one number or one tuple; any other text as it is."""
    inner = value.strip().removeprefix("\\{").removesuffix("\\}")
    if len(inner) == len(value.strip()) - 4 and _brackets(inner) == "()":
        return inner
    return _SINGLETON.sub(r"\1", value)


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
