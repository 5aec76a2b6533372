"""The data source: problems of a task, in splits that cannot overlap, after worked examples."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from itertools import islice
from typing import Literal, get_args

from bandpo.data.generated.tasks import TASKS, Item
from bandpo.errors import UserError
from bandpo.types import Problem, Turn

Split = Literal["train", "heldout"]
_HELD_OUT_SHARE = 0.2
_EXAMPLE_SHARE = 0.1
_MOST_DRAWS = 200  # per problem; to draw a whole split of n takes about ln n per problem


def problems(
    task: str,
    difficulty: int,
    split: Split,
    count: int,
    seed: int = 0,
    examples: int = 3,
    answer: str = r"\boxed{{{}}}",
) -> list[Problem]:
    """`count` distinct problems of a split, in an order drawn from the seed.

    Before each stand `examples` solved ones, the same for all, as turns of a conversation; none of
    them is a problem of a split. An answer is written as the format `answer` says. Which split a
    problem belongs to depends on its content alone, so no seed and no count can leak a held-out
    problem into training.

    Raises UserError for another task or split, a difficulty below 1, and for more problems than the
    split has.
    """
    if task not in TASKS:
        raise UserError(f"task={task}: the generated tasks are {', '.join(TASKS)}")
    if split not in get_args(Split):
        raise UserError(f"split={split}: a generated task has {' and '.join(get_args(Split))}")
    if difficulty < 1 or count < 1 or examples < 0:
        raise UserError("a generated task takes difficulty and count from 1, examples from 0")
    shown = _distinct(task, difficulty, "examples", examples, seed=0)
    turns = tuple(
        turn
        for item in shown
        for turn in (Turn("user", item.question), Turn("assistant", answer.format(item.answer)))
    )
    source = f"{task}-{difficulty}/{split}"
    return [
        Problem(
            f"{task}-{difficulty}-{item.key.replace(' ', '-')}",
            item.question,
            item.answer,
            source,
            turns=turns,
        )
        for item in _distinct(task, difficulty, split, count, seed)
    ]


def _distinct(task: str, difficulty: int, part: str, count: int, seed: int) -> list[Item]:
    """The first `count` items of a part with distinct keys."""
    found: dict[str, Item] = {}
    for item in islice(_drawn(task, difficulty, seed), _MOST_DRAWS * (count + 10)):
        if len(found) == count:
            break
        if _part_of(f"{task} {item.key}") == part:
            found.setdefault(item.key, item)
    if len(found) < count:
        raise UserError(
            f"{task} of difficulty {difficulty} has fewer than {count} problems in its part "
            f"{part}, about {len(found)}; ask for fewer or raise the difficulty"
        )
    return list(found.values())


def _drawn(task: str, difficulty: int, seed: int) -> Iterator[Item]:
    rng = random.Random(f"{task}-{difficulty}-{seed}")
    while True:
        yield TASKS[task](rng, difficulty)


def _part_of(key: str) -> str:
    """The part of a problem: examples, heldout or train, by a hash of its content."""
    place = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") / 2**32
    if place < _EXAMPLE_SHARE:
        return "examples"
    return "heldout" if place < _EXAMPLE_SHARE + _HELD_OUT_SHARE else "train"
