"""Whether an answer only says again what the problem says, without having evaluated it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from bandpo.reward import notation

_OPERATION = re.compile(
    r"\\(?:sqrt|binom|cdot|times|div|log|ln|sin|cos|tan|gcd|lcm|sum|prod|int)|[-+*/^!|]"
)
_FRACTION = re.compile(r"\\frac\{([^{}]*)\}\{([^{}]*)\}")
_ARITHMETIC = re.compile(r"(?:[\d.,\s+\-*/:(){}\[\]]|\\(?:frac|times|cdot|div)(?![A-Za-z]))+")
_IN_DOLLARS = re.compile(r"\$+([^$]{1,200})\$+")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_SEPARATOR = re.compile(r"(?<=\d)(?:,|\{,\}|\\,)(?=\d{3}(?!\d))")


def restates(answer: str, gold: str, problem: str) -> bool:
    """Whether an answer to a constant reference is an expression or arithmetic of the problem.

    Refused are expressions that occur in the problem and are not the reference as written, and
    combinations of nothing but the problem's own numbers by + − × ÷. A numeral in lowest terms is
    always an answer: `\\frac12`, `51`.
    """
    value = notation.canonical(answer).rsplit("=", 1)[-1]
    value = notation.quantity(value.strip()).value
    reference = notation.canonical(gold)
    if not notation.is_constant(reference) or notation.numeral(value) is not None:
        return False
    if not problem or _OPERATION.search(_FRACTION.sub("/", value)) is None:
        return False
    if _flat(value) == _flat(reference):
        return False
    return any(_occurs(_flat(value), formula) for formula in _formulas(problem)) or (
        _ARITHMETIC.fullmatch(value) is not None and _numbers(value) <= _numbers(problem)
    )


def _formulas(problem: str) -> Iterator[str]:
    """The text as it is, and what its dollars enclose in the spelling of answers."""
    yield _flat(problem)
    for formula in _IN_DOLLARS.findall(problem):
        yield _flat(notation.canonical(formula))


def _flat(text: str) -> str:
    """Without braces and spaces, fractions with a slash: `\\frac{102}{2}` is `102/2`."""
    while (slashed := _FRACTION.sub(r"\1/\2", text)) != text:
        text = slashed
    return re.sub(r"[{}\s]", "", text)


def _occurs(part: str, text: str) -> bool:
    bounded = rf"(?<![\w.^]){re.escape(part)}(?![\w^!])"
    return re.search(bounded, text) is not None


def _numbers(text: str) -> frozenset[str]:
    return frozenset(_NUMBER.findall(_SEPARATOR.sub("", text)))
