"""Whether two expressions have the same value, by digits whose accuracy is known.

sympy's `evalf` returns with every value how many of its bits are right. A difference counts as zero
only once it is known to be smaller than two numbers of such a size can differ by, and as nonzero
only once its leading bits are right. Nothing is rounded to zero on the way: `e^{-999}` is not 0 and
1/2^98 is not 1/2^99. Expressions in variables are compared at points: functions made of the
usual operations that agree there to hundreds of bits are the same.

Expressions are never rewritten, so a tower of powers costs no more than its exponent's digits.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import sympy
from sympy.core.evalf import evalf, fastlog

# Bits beyond which no two numbers are told apart: 60,000 digits, milliseconds.
_MOST_BITS = 200_000
_FIRST_BITS, _SPARE_BITS = 64, 96
_MOST_EXPONENT_BITS, _MOST_FACTORIAL_BITS = 60, 24
_SURE_BITS = 8  # of a nonzero difference
_AGREEING_POINTS = 4

_OF_WHOLE_NUMBERS = (sympy.factorial, sympy.binomial, sympy.gamma)

Subs = Mapping[sympy.Symbol, Any]


class Undecided(Exception):
    """The digits of an expression cannot be had: it has no value here, or one that is too large."""


class _Ball(NamedTuple):
    """A value by its size: it lies within 2^top, and is known to differ from 0 where `certain`."""

    top: float  # binary logarithm of a bound; −inf for an exact zero
    certain: bool


def same_constant(one: sympy.Expr, other: sympy.Expr, at: Subs | None = None) -> bool:
    """Whether two constants are equal; `at` gives variables values. Raises Undecided."""
    at = at or {}
    if one == other:
        return True
    for infinite in (sympy.oo, -sympy.oo, sympy.zoo, sympy.nan):
        if infinite in (one, other):
            return False
    if one.is_Rational and other.is_Rational and not at:
        return False
    if not at:
        _require_computable(one, at)
        _require_computable(other, at)
    difference = sympy.Add(one, sympy.Mul(-1, other, evaluate=False), evaluate=False)
    first = _evaluated(difference, _FIRST_BITS, at)
    if first.certain:
        return False
    bits = _FIRST_BITS + _size(one, at) + _size(other, at)
    if bits > _MOST_BITS:
        raise Undecided("too large")
    scale = max(_evaluated(side, _FIRST_BITS, at).top for side in (one, other))
    exact = _evaluated(difference, int(bits) + _SPARE_BITS, at)
    if exact.certain:
        return False
    if exact.top <= scale - bits or exact.top <= -bits:
        return True
    raise Undecided("not enough digits")


def same_function(gold: sympy.Expr, answer: sympy.Expr) -> bool:
    """Whether an answer agrees with the reference wherever that is real, by trying points.

    Points at which the reference has no real value lie outside its domain and say nothing, unless
    the expressions are complex by their form. Functions of whole numbers, such as (−1)^n, are tried
    at those where they have no values between. Raises Undecided.
    """
    symbols = sorted(gold.free_symbols | answer.free_symbols, key=str)
    if not symbols:
        return same_constant(gold, answer)
    is_complex = gold.has(sympy.I) or answer.has(sympy.I)
    of_whole_numbers = gold.has(*_OF_WHOLE_NUMBERS) or answer.has(*_OF_WHOLE_NUMBERS)
    ways = (_whole_numbers,) if of_whole_numbers else (_fractions, _whole_numbers)
    for points in (way(symbols) for way in ways):
        agreeing = 0
        for point in points:
            try:
                _require_computable(gold, point)
                _require_computable(answer, point)
                if not is_complex and not _is_real(gold, point):
                    continue
                if not is_complex and not _is_real(answer, point):
                    return False
                if not same_constant(gold, answer, point):
                    return False
                agreeing += 1
            except Undecided:
                continue
        if agreeing >= _AGREEING_POINTS:
            return True
    raise Undecided("no points in common")


def is_zero(expression: sympy.Expr) -> bool:
    """Whether an expression is zero everywhere. Raises Undecided."""
    return same_function(expression, sympy.S.Zero)


def is_positive(expression: sympy.Expr, point: Subs) -> bool | None:
    """The sign of a real expression at a point; None where it is zero or has none."""
    try:
        real, imaginary, accuracy, _ = _digits(expression, _FIRST_BITS, point)
    except Undecided:
        return None
    if real is None or imaginary is not None or accuracy < _SURE_BITS:
        return None
    return real[0] == 0


def points(symbols: list[sympy.Symbol]) -> Iterator[Subs]:
    """Points of all sign patterns and sizes, the same in every process."""
    yield from _fractions(symbols)


def _is_real(expression: sympy.Expr, point: Subs) -> bool:
    _, imaginary, _, accuracy = _digits(expression, _FIRST_BITS, point)
    if imaginary is None:
        return True
    # An imaginary part that is only rounding is none.
    return accuracy < _SURE_BITS and fastlog(imaginary) < -_FIRST_BITS // 2


def _evaluated(expression: sympy.Expr, bits: int, at: Subs) -> _Ball:
    real, imaginary, real_bits, imaginary_bits = _digits(expression, bits, at)
    parts = [(real, real_bits), (imaginary, imaginary_bits)]
    sizes = [(fastlog(part), right) for part, right in parts if part is not None and any(part[1:])]
    if not sizes:
        return _Ball(float("-inf"), False)
    top = max(float(size) for size, _ in sizes)
    return _Ball(top, any((right or 0) >= _SURE_BITS for _, right in sizes))


def _digits(expression: sympy.Expr, bits: int, at: Subs) -> tuple[Any, Any, Any, Any]:
    """evalf's real and imaginary parts as binary floats (None for an exact 0), with right bits."""
    options = {"maxprec": bits + _SPARE_BITS, "subs": dict(at)}
    try:
        real, imaginary, real_bits, imaginary_bits = evalf(expression, bits, options)
    except (ValueError, TypeError, ArithmeticError, AttributeError, RuntimeError) as error:
        raise Undecided(type(error).__name__) from None
    for part in (real, imaginary):
        if part is not None and (not isinstance(part, tuple) or (part[1] == 0 and part[2])):
            raise Undecided("not a finite number")
    return real, imaginary, real_bits, imaginary_bits


def _require_computable(expression: sympy.Basic, at: Subs) -> None:
    """Raises Undecided for a power or a factorial of too large a number, innermost first."""
    for argument in expression.args:
        if argument.args:
            _require_computable(argument, at)
    if isinstance(expression, sympy.Pow | sympy.exp):
        most = _MOST_EXPONENT_BITS
    elif isinstance(expression, _OF_WHOLE_NUMBERS):
        most = _MOST_FACTORIAL_BITS
    else:
        return
    if any(_magnitude(argument, at) > 2.0**most for argument in expression.args[-1:]):
        raise Undecided("too large")


def _size(expression: sympy.Expr, at: Subs) -> float:
    """Bits of the numerals, weighed by the powers that they are raised to.

    A rational number built of such numerals by + − × ÷ and whole powers has a numerator and a
    denominator of no more bits, so two that differ do so by more than 2^−(the sum of both). For
    other numbers it is a scale at which a coincidence is out of the question.
    """
    if expression.is_Rational:
        return float(int(abs(expression.p)).bit_length() + int(expression.q).bit_length())
    if isinstance(expression, sympy.Float):
        return 64.0
    if expression in at:
        return _size(at[expression], {})
    if isinstance(expression, sympy.Pow | sympy.exp):
        base, exponent = expression.as_base_exp()
        inner = max(2.0, _size(base, at))
        return _size(exponent, at) + inner * max(1.0, _magnitude(exponent, at))
    if isinstance(expression, sympy.factorial | sympy.gamma | sympy.binomial):
        largest = max(_magnitude(argument, at) for argument in expression.args)
        return 64.0 + largest * max(1.0, _log2(largest))
    sizes = [
        _size(part, at) for part in expression.args if part.args or part.is_Number or part in at
    ]
    if at and isinstance(expression, sympy.Add):
        return 4.0 + max(sizes, default=0.0)  # a point is tried, not proved
    return 4.0 + sum(sizes)


def _magnitude(expression: sympy.Expr, at: Subs) -> float:
    """A bound on |expression|, inf where it is out of reach."""
    if expression in at:
        expression = at[expression]
    if expression.is_Rational:
        return float(abs(expression)) if abs(expression) < 2**64 else float("inf")
    top = _evaluated(expression, _FIRST_BITS, at).top
    return 2.0**top if top < 64 else float("inf")


def _log2(value: float) -> float:
    return float("inf") if value == float("inf") else max(0.0, len(bin(int(value))) - 2.0)


_INTERVALS = ((0, 1), (1, 4), (-3, 0), (0, 1), (4, 30), (-2, 2), (0, 1), (-30, 30), (0, 1))


def _fractions(symbols: list[sympy.Symbol]) -> Iterator[Subs]:
    generator = random.Random(0)
    for low, high in _INTERVALS:
        yield {
            symbol: sympy.Rational(generator.randint(low * 997 + 1, high * 997 - 1), 997)
            for symbol in symbols
        }


def _whole_numbers(symbols: list[sympy.Symbol]) -> Iterator[Subs]:
    for start in range(1, 9):
        numbers = itertools.count(start, 3)
        yield {symbol: sympy.Integer(next(numbers)) for symbol in symbols}
