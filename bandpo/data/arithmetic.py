"""The embedded task: chains of additions and subtractions with an integer answer.

A problem reads `Compute 7+5-3+8.`; a worked solution reads `7+5=12;12-3=9;9+8=17;\\boxed{17}`.
There are about 35,000 distinct problems; which of them are held out depends on the problem's
text alone, so no seed and no count can leak a held-out problem into training.
"""

from __future__ import annotations

import hashlib
import random
import re
from typing import Literal, get_args

from bandpo.errors import UserError
from bandpo.types import Problem

OPERANDS = 5
LARGEST_OPERAND = 9
HELD_OUT_SHARE = 0.05
MOST_DRAWS = 50  # per problem; to draw a whole split of n takes about ln n per problem
# Openings of a worked solution: ways to the same answer that differ in one token.
OPENINGS = ("", "so ", "add ", "hence ", "now ")

Split = Literal["train", "heldout"]


def _split_of(expression: str) -> Split:
    digest = hashlib.sha256(expression.encode()).digest()
    return "heldout" if int.from_bytes(digest[:4], "big") < HELD_OUT_SHARE * 2**32 else "train"


def partial_sums(terms: list[int]) -> list[int]:
    """The running totals of signed terms, first term included."""
    totals = [terms[0]]
    for term in terms[1:]:
        totals.append(totals[-1] + term)
    return totals


def expression_of(terms: list[int]) -> str:
    """`[7, 5, -3]` written as `7+5-3`."""
    return str(terms[0]) + "".join(f"{term:+d}" for term in terms[1:])


def terms_of(expression: str) -> list[int]:
    """`7+5-3` read as `[7, 5, -3]`."""
    return [int(term) for term in re.findall(r"[+-]?\d+", expression)]


def worked_solution(terms: list[int], opening: str = "") -> str:
    """Every intermediate sum in order, then the boxed answer, after one of `OPENINGS`."""
    totals = partial_sums(terms)
    steps = (
        f"{total}{term:+d}={after};"
        for total, term, after in zip(totals[:-1], terms[1:], totals[1:], strict=True)
    )
    return opening + "".join(steps) + direct_solution(terms)


def direct_solution(terms: list[int]) -> str:
    """The boxed answer alone."""
    return rf"\boxed{{{sum(terms)}}}"


def draw_terms(rng: random.Random, split: Split) -> list[int]:
    """Signed terms of a random problem of `split` whose running totals are never negative."""
    while True:
        magnitudes = [rng.randint(1, LARGEST_OPERAND) for _ in range(OPERANDS)]
        signs = [1] + [rng.choice((1, -1)) for _ in range(OPERANDS - 1)]
        terms = [sign * magnitude for sign, magnitude in zip(signs, magnitudes, strict=True)]
        if min(partial_sums(terms)) >= 0 and _split_of(expression_of(terms)) == split:
            return terms


def statement_of(terms: list[int]) -> str:
    """The problem as the model reads it."""
    return f"Compute {expression_of(terms)}."


def problems(split: Split, count: int, seed: int = 0) -> list[Problem]:
    """`count` distinct problems of a split, in an order drawn from the seed.

    Raises UserError for another split, or for more problems than the split has.
    """
    if split not in get_args(Split):
        raise UserError(f"split={split}: the arithmetic task has {' and '.join(get_args(Split))}")
    rng = random.Random(f"arithmetic-{split}-{seed}")
    found: dict[str, Problem] = {}
    drawn = 0
    while len(found) < count:
        drawn += 1
        if drawn > MOST_DRAWS * count:
            raise UserError(
                f"count={count}: the split {split} of the arithmetic task has fewer problems, "
                f"about {len(found)}"
            )
        terms = draw_terms(rng, split)
        identity = f"arithmetic-{expression_of(terms)}"
        found.setdefault(
            identity,
            Problem(identity, statement_of(terms), str(sum(terms)), source=f"arithmetic/{split}"),
        )
    return list(found.values())
