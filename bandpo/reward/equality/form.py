"""Whether an equal answer is also finished: what `lowest_form` asks for.

strict
    a rational reference needs a numeral in lowest terms, an irrational one no more terms than it
    has.
restated
    closed forms that took work count (`2^{10}` for 1024, `\\binom52`, `\\log_2 8`, `\\frac24`);
    sums, differences and products of numerals do not (`37+14` for 51), nor commands to compute
    (`\\sum`, `\\gcd`), nor like terms not collected (`\\sqrt8+\\sqrt2`). What occurs in the problem
    is refused by `bandpo.reward.restating`, in the process that knows the problem.
off
    any equal answer counts.
"""

from __future__ import annotations

import itertools
import re
from typing import Any

import sympy

from bandpo.reward.score import LowestForm

_DIGITS = r"[\d.,\s]+"
_ARITHMETIC = re.compile(
    r"(?:[\d.,\s+\-*/:(){}\[\]]|\\(?:frac|times|cdot|div)(?![A-Za-z]))+", re.ASCII
)
_ONE_FRACTION = re.compile(
    rf"\s*[-+]?\s*(?:\\frac\s*(?:\{{\s*-?{_DIGITS}\}}|\d)\s*(?:\{{\s*-?{_DIGITS}\}}|\d)|{_DIGITS}/{_DIGITS})\s*"
)
_COMMANDS = re.compile(r"\\(?:sum|prod|int|iint|lim|gcd|lcm|max|min|det|bmod|pmod|mod)(?![A-Za-z])")


def is_unfinished(value: str) -> bool:
    """Whether an answer for a rational number is arithmetic on numerals or a command to compute."""
    if _COMMANDS.search(value):
        return True
    if not _ARITHMETIC.fullmatch(value) or not re.search(r"\d", value):
        return False
    return _ONE_FRACTION.fullmatch(value) is None


def is_evaluated(answer: Any, gold: Any, lowest_form: LowestForm) -> bool:
    """Whether an irrational number is written with its terms collected."""
    if (
        lowest_form == "off"
        or not isinstance(gold, sympy.Expr)
        or not isinstance(answer, sympy.Expr)
    ):
        return True
    if gold.free_symbols or (lowest_form == "restated" and _is_rational(gold)):
        return True
    if lowest_form == "strict":
        return gold.is_Rational or _terms(answer) <= max(
            _terms(gold), _terms(sympy.expand(gold.doit()))
        )
    return _terms(answer) <= _terms(gold) or not _has_like_terms(answer)


def _is_rational(number: sympy.Expr) -> bool:
    """Whether a number is rational by its form: numerals, + − × ÷ and whole powers."""
    return all(
        part.is_Rational
        or isinstance(part, sympy.Add | sympy.Mul)
        or (isinstance(part, sympy.Pow) and part.exp.is_Integer)
        for part in sympy.preorder_traversal(number)
    )


def _terms(expression: Any) -> int:
    if not isinstance(expression, sympy.Add):
        return 1
    return sum(_terms(term) for term in expression.args)


def _has_like_terms(expression: sympy.Expr) -> bool:
    """Whether two terms of a sum are rational multiples of one irrational number."""
    if not isinstance(expression, sympy.Add):
        return False
    ratios = (a.doit() / b.doit() for a, b in itertools.combinations(expression.args, 2))
    return any(ratio.is_Rational or sympy.radsimp(ratio).is_Rational for ratio in ratios)
