"""LaTeX of one answer as a sympy object: latex2sympy's reading without its losses.

Letters keep their case, decimals are exact, an angle keeps the order of its letters. Nothing is
computed here.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

import sympy
from latex2sympy2_extended import NormalizationConfig, latex2sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig
from latex2sympy2_extended.math_normalization import normalize_latex

from bandpo.reward import notation

# Units are split off before; latex2sympy's own removal would take the variable of `5t` for one.
_NORMALISED = NormalizationConfig(
    basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none"
)
_AS_WRITTEN = ConversionConfig(lowercase_symbols=False)

_PRIMED_NUMBER = re.compile(r"(?:\d|\\circ)\s*['_]")
_ANGLE = re.compile(r"\\(angle|triangle)\s*\{?\s*([A-Z](?:\s*[A-Z]){1,3})\s*\}?")
_REWRITES = [
    (re.compile(r"\\gamma(?![A-Za-z])"), r"\\kappa_{gamma}"),  # the parser takes it for Γ(…)
    (re.compile(r"(?<=[A-Za-z])'+"), r"_{prime}"),  # it drops primes
]


@functools.lru_cache(maxsize=512)
def read(value: str) -> tuple[Any, ...]:
    """The reading of one answer; empty where it has none."""
    number = notation.numeral(value)
    if number is not None:
        return (sympy.Rational(number.numerator, number.denominator),)
    if _PRIMED_NUMBER.search(value):
        return ()
    reading = _parsed(notation.exact(_prepared(value)))
    return () if reading is None else (reading,)


def in_radians(parsed: Sequence[Any]) -> list[Any]:
    """Angles in degrees as numbers."""
    return [e * sympy.pi / 180 if isinstance(e, sympy.Expr) else e for e in parsed]


def hundredth(parsed: Sequence[Any]) -> list[Any]:
    """Percentages as numbers."""
    return [
        sympy.Mul(e, sympy.Rational(1, 100), evaluate=False) if isinstance(e, sympy.Expr) else e
        for e in parsed
    ]


def renumbered(gold: Any, answer: Any) -> Any:
    """A family of angles with the reference's letter for its whole number: `n\\pi` for `k\\pi`."""
    letters = [_numbering(side) for side in (gold, answer)]
    if letters[0] is None or letters[1] is None or letters[0] == letters[1]:
        return answer
    return answer.xreplace({letters[1]: letters[0]})


def _numbering(family: Any) -> sympy.Symbol | None:
    """The letter k of π/4 + kπ, where there is no other."""
    if not isinstance(family, sympy.Basic) or not family.has(sympy.pi):
        return None
    symbols = family.free_symbols
    return next(iter(symbols)) if len(symbols) == 1 and str(*symbols) in "klmn" else None


def _prepared(latex: str) -> str:
    for pattern, replacement in _REWRITES:
        latex = pattern.sub(replacement, latex)
    return _ANGLE.sub(_angle, latex)


def _angle(match: re.Match[str]) -> str:
    """One symbol for `\\angle ABC`, the same for `\\angle CBA`, another for `\\angle ACB`."""
    letters = "".join(match[2].split())
    if match[1] == "triangle":
        return rf"\theta_{{area{''.join(sorted(letters))}}}"  # the parser has `tri` for itself
    return rf"\theta_{{angle{min(letters, letters[::-1])}}}"


def _parsed(latex: str) -> Any:
    try:
        expression = latex2sympy(
            normalize_latex(latex, _NORMALISED),
            is_real=True,
            normalization_config=None,
            conversion_config=_AS_WRITTEN,
        )
        return _with_imaginary_unit(expression) if notation.is_constant(latex) else expression
    except RecursionError:
        raise
    except Exception:  # the parser raises bare Exceptions, and whatever sympy raises below it
        return None


def _with_imaginary_unit(expression: Any) -> Any:
    if not isinstance(expression, sympy.Basic):
        return expression
    return expression.xreplace(
        {symbol: sympy.I for symbol in expression.free_symbols if symbol.name == "i"}
    )
