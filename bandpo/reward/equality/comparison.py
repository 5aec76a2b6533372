"""Whether two parsed answers are the same mathematical object, by kind.

numbers and expressions
    by verified digits, at points where there are variables (`bandpo.reward.equality.numeric`);
    symbolically only where there are none (integrals, sums with a variable bound, unknown
    functions).
equations and inequalities
    where one is a constant multiple of the other; an equation also by its solutions for
    each variable, an inequality in one variable by its solution set.
sets, intervals, tuples, matrices
    element by element; sets in any order, tuples in theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import sympy
from sympy.core.function import AppliedUndef
from sympy.core.relational import Relational

from bandpo.reward.equality.numeric import Undecided, is_positive, is_zero, points, same_function

_FLIPPED = {sympy.Gt: sympy.Lt, sympy.Ge: sympy.Le}
_MOST_ELEMENTS = 64
_MOST_SOLVED = 3  # variables
# To be computed before there is a value; everything else has digits as it stands.
_DELAYED = (sympy.Integral, sympy.Derivative, sympy.Limit, sympy.Sum, sympy.Product)


def same(gold: Any, answer: Any) -> bool:
    """Whether an answer equals the reference, both as the parser gave them."""
    if _is_relation_list(gold) != _is_relation_list(answer):
        solved = [_solutions(side) for side in (gold, answer)]
        return all(s is not None for s in solved) and _same_set(*solved)
    if isinstance(gold, sympy.MatrixBase | sympy.MatrixExpr):
        return _same_matrix(gold, answer)
    if isinstance(answer, sympy.MatrixBase | sympy.MatrixExpr):
        return _same_matrix(answer, gold)
    if _is_relation(gold) or _is_relation(answer):
        return _same_relation(gold, answer)
    if isinstance(gold, sympy.Set | sympy.Tuple) or isinstance(answer, sympy.Set | sympy.Tuple):
        return _same_set(gold, answer)
    if isinstance(gold, sympy.Expr) and isinstance(answer, sympy.Expr):
        return _same_expression(gold, answer)
    return bool(gold == answer)


def same_in_any_order(
    gold: Sequence[Any], answer: Sequence[Any], equal: Callable[[Any, Any], bool] = same
) -> bool:
    """Whether there is a one-to-one correspondence of equal elements."""
    if len(gold) != len(answer) or len(gold) > _MOST_ELEMENTS:
        return False
    left = list(answer)
    for element in gold:
        found = next((i for i, other in enumerate(left) if equal(element, other)), None)
        if found is None:
            return False
        del left[found]
    return True


# --- expressions -----------------------------------------------------------------------------


def _same_expression(gold: sympy.Expr, answer: sympy.Expr) -> bool:
    if gold == answer:
        return not gold.has(sympy.nan, sympy.zoo)
    try:
        return same_function(gold, answer)
    except Undecided:
        return _same_symbolically(gold, answer)


def _same_symbolically(gold: sympy.Expr, answer: sympy.Expr) -> bool:
    if not (gold.has(*_DELAYED, AppliedUndef) or answer.has(*_DELAYED, AppliedUndef)):
        return False  # no digits because they are too many, or no value
    computed = [side.doit() for side in (gold, answer)]
    if computed != [gold, answer]:
        try:
            return same_function(*computed)
        except Undecided:
            pass
    return sympy.simplify(computed[0] - computed[1]).is_zero is True


# --- equations and inequalities --------------------------------------------------------------


def _is_relation(value: Any) -> bool:
    return isinstance(value, Relational | sympy.logic.boolalg.BooleanFunction)


def _is_relation_list(value: Any) -> bool:
    return isinstance(value, sympy.FiniteSet) and all(map(_is_relation, value.args))


def _same_relation(gold: Any, answer: Any) -> bool:
    if isinstance(gold, sympy.Set) or isinstance(answer, sympy.Set):
        solved = [_solutions(side) for side in (gold, answer)]
        return all(s is not None for s in solved) and _same_set(*solved)
    if not (_is_relation(gold) and _is_relation(answer)):
        return False
    if isinstance(gold, Relational) and isinstance(answer, Relational):
        return _same_single_relation(gold, answer)
    if type(gold) is not type(answer):
        return _same_solutions(gold, answer)
    parts = [getattr(side, "_unsorted_args", side.args) for side in (gold, answer)]
    return same_in_any_order(*parts) or _same_solutions(gold, answer)


def _same_single_relation(gold: Relational, answer: Relational) -> bool:
    (one, left), (other, right) = map(_against_zero, (gold, answer))
    if one is None or other is None:  # sides that cannot be subtracted: sets, tuples
        return (
            type(gold) is type(answer) and same(gold.lhs, answer.lhs) and same(gold.rhs, answer.rhs)
        )
    if left is not right:
        return False
    if _is_multiple(one, other, positive=left in (sympy.Lt, sympy.Le)):
        return True
    if left is sympy.Eq:
        return _same_roots(one, other)
    return _same_solutions(gold, answer)


def _against_zero(relation: Relational) -> tuple[sympy.Expr | None, type]:
    """`lhs > rhs` as an expression that is < 0, with the kind of the relation."""
    kind = _FLIPPED.get(relation.func, relation.func)
    left, right = relation.args if kind is relation.func else reversed(relation.args)
    if not (isinstance(left, sympy.Expr) and isinstance(right, sympy.Expr)):
        return None, kind
    return sympy.Add(left, sympy.Mul(-1, right, evaluate=False), evaluate=False), kind


def _is_multiple(one: sympy.Expr, other: sympy.Expr, *, positive: bool) -> bool:
    """Whether one / other is a constant, and a positive one: one(x)·other(y) = one(y)·other(x)."""
    symbols = one.free_symbols
    if not symbols or symbols != other.free_symbols:
        return False
    elsewhere = {s: sympy.Symbol(f"{s.name}'", real=True) for s in symbols}
    try:
        if is_zero(one) or is_zero(other):
            return is_zero(one) and is_zero(other)
        products = [
            sympy.Mul(a, b.xreplace(elsewhere), evaluate=False)
            for a, b in ((one, other), (other, one))
        ]
        if not same_function(*products):
            return False
    except Undecided:
        return False
    if not positive:
        return True
    signs = (
        (is_positive(one, point), is_positive(other, point))
        for point in points(sorted(symbols, key=str))
    )
    return next((a is b for a, b in signs if a is not None and b is not None), False)


def _same_roots(one: sympy.Expr, other: sympy.Expr) -> bool:
    """Whether two equations have the same solutions for a variable, and other ones for none."""
    symbols = sorted(one.free_symbols, key=str)
    if set(symbols) != other.free_symbols or not 0 < len(symbols) <= _MOST_SOLVED:
        return False
    verdicts = [_same_roots_for(symbol, one, other) for symbol in symbols]
    return False not in verdicts and True in verdicts


def _same_roots_for(symbol: sympy.Symbol, one: sympy.Expr, other: sympy.Expr) -> bool | None:
    """None where sympy finds no solutions or they cannot be compared."""
    try:
        solutions = [sympy.solve(side, symbol) for side in (one, other)]
        roots = [root for side in solutions for root in side]
        if not roots or any(root.has(sympy.I) for root in roots):
            return None
        return same_in_any_order(solutions[0], solutions[1], same_function)
    except (NotImplementedError, ValueError, TypeError, Undecided):
        return None


def _same_solutions(gold: Any, answer: Any) -> bool:
    symbols = gold.free_symbols
    if len(symbols) != 1 or symbols != answer.free_symbols:
        return False
    solved = [_solutions(side) for side in (gold, answer)]
    return all(s is not None for s in solved) and _same_set(*solved)


def _solutions(value: Any) -> sympy.Set | None:
    """The solution set of a relation in one variable; a set is its own."""
    if _is_relation_list(value):
        return _solutions_of_list(value.args)
    if not _is_relation(value):
        return value
    if isinstance(value, sympy.Eq):
        # `x ∈ S` is read as x = S; `x = 3` is no set of its own
        return value.rhs if isinstance(value.rhs, sympy.Set) else None
    try:
        return value.as_set()
    except (NotImplementedError, ValueError, TypeError, AttributeError):
        return None


def _solutions_of_list(relations: Sequence[Any]) -> sympy.Set | None:
    """`x < 3, x > 5` is either; `x ≠ 3, x ≠ 5` is both."""
    if len(set().union(*(relation.free_symbols for relation in relations))) != 1:
        return None
    solved = [_solutions(relation) for relation in relations]
    if any(solution is None for solution in solved):
        return None
    excluding = all(isinstance(relation, sympy.Ne) for relation in relations)
    return sympy.Intersection(*solved) if excluding else sympy.Union(*solved)


# --- sets, intervals, tuples -----------------------------------------------------------------


def _same_set(gold: Any, answer: Any) -> bool:
    if isinstance(gold, sympy.Interval) and isinstance(answer, sympy.Interval):
        return (
            (gold.left_open, gold.right_open) == (answer.left_open, answer.right_open)
            and same(gold.start, answer.start)
            and same(gold.end, answer.end)
        )
    if isinstance(gold, sympy.FiniteSet) and isinstance(answer, sympy.FiniteSet):
        return _same_finite(gold, answer)
    if (
        isinstance(gold, sympy.FiniteSet | sympy.Tuple)
        and len(gold.args) == 1
        and not isinstance(answer, sympy.Set | sympy.Tuple)
    ):
        return not isinstance(gold.args[0], sympy.Set) and same(gold.args[0], answer)
    if (
        isinstance(answer, sympy.FiniteSet)
        and len(answer.args) == 1
        and not isinstance(gold, sympy.Set | sympy.Tuple)
    ):
        return not isinstance(answer.args[0], sympy.Set) and same(gold, answer.args[0])
    one, other = ordered_elements(gold), ordered_elements(answer)
    if one is not None and other is not None:
        return len(one) == len(other) and all(map(same, one, other))
    if not (isinstance(gold, sympy.Set) and isinstance(answer, sympy.Set)):
        return False
    return _same_infinite(gold, answer)


def _same_finite(gold: sympy.FiniteSet, answer: sympy.FiniteSet) -> bool:
    if same_in_any_order(gold.args, answer.args):
        return True
    if not (_is_relation_list(gold) and _is_relation_list(answer)):
        return False
    solved = [_solutions(side) for side in (gold, answer)]
    return all(s is not None for s in solved) and _same_set(*solved)


def ordered_elements(value: Any) -> Sequence[Any] | None:
    """Elements in the order written: of a tuple, of a list, of `(1, 2)`, which is read as open."""
    if isinstance(value, sympy.Tuple):
        return value.args
    if isinstance(value, sympy.FiniteSet):
        return getattr(value, "_unsorted_args", None)
    if isinstance(value, sympy.Interval) and value.left_open and value.right_open:
        return (value.start, value.end)
    return None


def _same_infinite(gold: sympy.Set, answer: sympy.Set) -> bool:
    one, other = (side.doit() for side in (gold, answer))
    if one == other:
        return True
    if isinstance(one, sympy.Union) and isinstance(other, sympy.Union):
        return same_in_any_order(one.args, other.args)
    if type(one) is not type(gold) or type(other) is not type(answer):
        return same(one, other)
    try:
        return sympy.SymmetricDifference(one, other).is_empty is True
    except (NotImplementedError, ValueError, TypeError):
        return False


def _same_matrix(one: Any, other: Any) -> bool:
    one, other = (
        side.doit() if isinstance(side, sympy.MatrixBase | sympy.MatrixExpr) else side
        for side in (one, other)
    )
    if not isinstance(one, sympy.MatrixBase):
        return bool(one == other)
    if isinstance(other, sympy.MatrixBase):
        return one.shape == other.shape and all(map(same, one.flat(), other.flat()))
    elements = ordered_elements(other) if not isinstance(other, sympy.FiniteSet) else None
    is_vector = 1 in one.shape
    return (
        is_vector
        and elements is not None
        and len(elements) == len(one)
        and all(map(same, one.flat(), elements))
    )
