"""Reads answers, as people and models write them, into LaTeX that math-verify reads correctly.

Pure text, standard library alone. docs/verifier.md says what counts as equal. `canonical` goes
from the inside out: characters, layout, the sentence around an answer, numbers, angles, sets;
`quantity` and `literal` then say what is to be compared: a value with a unit, or signs.
"""

from __future__ import annotations

import re

from bandpo.reward.notation.angles import in_radians
from bandpo.reward.notation.braces import closing, split_list
from bandpo.reward.notation.characters import as_latex
from bandpo.reward.notation.layout import plain, trimmed
from bandpo.reward.notation.literals import Literal, labelled, literal, same_time
from bandpo.reward.notation.numbers import (
    MAX_CHARS,
    certain_value,
    exact,
    fraction,
    is_constant,
    numeral,
    recurring,
    single_number,
    spread,
    too_large,
    ungrouped,
)
from bandpo.reward.notation.prose import statement
from bandpo.reward.notation.sets import both_signs, conditions, in_intervals
from bandpo.reward.notation.spelled import in_digits
from bandpo.reward.notation.structure import pieces, structured, with_argument
from bandpo.reward.notation.units import Quantity, quantity

__all__ = [
    "MAX_CHARS",
    "Literal",
    "Quantity",
    "canonical",
    "certain_value",
    "closing",
    "exact",
    "fraction",
    "is_constant",
    "labelled",
    "literal",
    "numeral",
    "pieces",
    "quantity",
    "same_time",
    "single_number",
    "split_list",
    "spread",
    "too_large",
    "with_argument",
]

_NUMBER = re.compile(r"[-+]?\d{1,64}(?:\.\d{1,64})?", re.ASCII)
_STEPS = (
    statement,
    in_digits,
    recurring,
    in_radians,
    structured,
    conditions,
    both_signs,
    in_intervals,
)


def canonical(text: str) -> str:
    """The same answer in one spelling: ASCII LaTeX without layout, prose, final punctuation."""
    if _NUMBER.fullmatch(text):
        return text
    text = plain(ungrouped(as_latex(text)))
    for step in _STEPS:
        text = step(text)
    return ungrouped(trimmed(" ".join(text.split())))
