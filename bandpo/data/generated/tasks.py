"""The tasks: each draws a question of some difficulty, with its answer.

A task is a function of a random generator and a difficulty, from 1 up; `TASKS` names them all.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Item:
    """A question, its answer, and a key that questions with the same content share.

    `12 + 7` and `7 + 12` have one key, so that one of them cannot be trained on while the other is
    held out.
    """

    key: str
    question: str
    answer: str


Task = Callable[[random.Random, int], Item]


def _number(rng: random.Random, digits: int) -> int:
    """A number of so many digits, none of them a leading zero."""
    return rng.randrange(10 ** (digits - 1), 10**digits)


def _unordered(numbers: Sequence[object]) -> str:
    return " ".join(sorted(map(str, numbers)))


def next_number(rng: random.Random, difficulty: int) -> Item:
    """The number after one of `difficulty` digits."""
    n = _number(rng, difficulty)
    return Item(str(n), f"What number comes after {n}?", str(n + 1))


def previous_number(rng: random.Random, difficulty: int) -> Item:
    """The number before one of `difficulty` digits."""
    n = _number(rng, difficulty)
    return Item(str(n), f"What number comes before {n}?", str(n - 1))


def largest(rng: random.Random, difficulty: int) -> Item:
    """The largest of three distinct numbers of `difficulty` digits."""
    while len({*(three := [_number(rng, difficulty) for _ in range(3)])}) < 3:
        pass
    a, b, c = three
    return Item(
        _unordered(three), f"Which number is the largest: {a}, {b} or {c}?", str(max(three))
    )


def addition(rng: random.Random, difficulty: int) -> Item:
    """The sum of two numbers of `difficulty` digits."""
    a, b = _number(rng, difficulty), _number(rng, difficulty)
    return Item(_unordered((a, b)), f"What is {a} + {b}?", str(a + b))


def subtraction(rng: random.Random, difficulty: int) -> Item:
    """The difference, at least 0, of two numbers of `difficulty` digits."""
    a, b = sorted((_number(rng, difficulty), _number(rng, difficulty)), reverse=True)
    return Item(f"{a} {b}", f"What is {a} - {b}?", str(a - b))


def multiplication(rng: random.Random, difficulty: int) -> Item:
    """The product of a number of `difficulty` digits and one from 2 to 9."""
    a, b = _number(rng, difficulty), rng.randint(2, 9)
    return Item(_unordered((a, b)), f"What is {a} * {b}?", str(a * b))


def digit_sum(rng: random.Random, difficulty: int) -> Item:
    """The sum of the digits of a number with one digit more than the difficulty."""
    n = _number(rng, difficulty + 1)
    return Item(str(n), f"What is the sum of the digits of {n}?", str(sum(map(int, str(n)))))


def reversal(rng: random.Random, difficulty: int) -> Item:
    """A number with one digit more than the difficulty, backwards; none of its digits is 0."""
    digits = "".join(rng.choice("123456789") for _ in range(difficulty + 1))
    return Item(digits, f"What is {digits} written backwards?", digits[::-1])


def sequence(rng: random.Random, difficulty: int) -> Item:
    """The fifth number of an arithmetic sequence that starts with one of `difficulty` digits."""
    start, step = _number(rng, difficulty), rng.randint(2, 9)
    terms = [start + step * i for i in range(5)]
    shown = ", ".join(map(str, terms[:-1]))
    return Item(f"{start} {step}", f"What number comes next: {shown}?", str(terms[-1]))


def larger_fraction(rng: random.Random, difficulty: int) -> Item:
    """The larger of two proper fractions with denominators up to 4 · `difficulty`."""
    while True:
        pairs = [
            (rng.randint(1, d - 1), d)
            for d in (_denominator(rng, difficulty), _denominator(rng, difficulty))
        ]
        a, b = (Fraction(*pair) for pair in pairs)
        if a != b:
            break
    shown = [f"{top}/{bottom}" for top, bottom in pairs]
    return Item(_unordered(shown), f"Which is larger, {shown[0]} or {shown[1]}?", shown[a < b])


def _denominator(rng: random.Random, difficulty: int) -> int:
    return rng.randint(2, 4 * difficulty)


TASKS: dict[str, Task] = {
    task.__name__: task
    for task in (
        next_number,
        previous_number,
        largest,
        addition,
        subtraction,
        multiplication,
        digit_sum,
        reversal,
        sequence,
        larger_fraction,
    )
}
