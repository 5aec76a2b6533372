"""Generated tasks: right answers, splits that share nothing, errors in words."""

import re
from fractions import Fraction

import pytest

from bandpo.data.generated import TASKS, problems
from bandpo.data.sources import load_problems
from bandpo.errors import UserError

NUMBER = re.compile(r"\d+")


def numbers(text: str) -> list[int]:
    return [int(found) for found in NUMBER.findall(text)]


ANSWERS = {
    "next_number": lambda ns: ns[0] + 1,
    "previous_number": lambda ns: ns[0] - 1,
    "largest": lambda ns: sorted(ns)[-1],
    "addition": lambda ns: ns[0] + ns[1],
    "subtraction": lambda ns: ns[0] - ns[1],
    "multiplication": lambda ns: ns[0] * ns[1],
    "digit_sum": lambda ns: sum(int(digit) for digit in str(ns[0])),
    "reversal": lambda ns: int(str(ns[0])[::-1]),
    "sequence": lambda ns: 2 * ns[3] - ns[2],
    "larger_fraction": lambda ns: max(Fraction(ns[0], ns[1]), Fraction(ns[2], ns[3])),
}


@pytest.mark.parametrize("difficulty", [2, 3])
@pytest.mark.parametrize("task", TASKS)
def test_answers_are_right_and_examples_too(task, difficulty):
    found = problems(task, difficulty, "train", 20)
    asked = [(problem.problem, problem.answer) for problem in found]
    turns = found[0].turns
    assert [turn.role for turn in turns] == ["user", "assistant"] * 3
    for question, reply in zip(turns[::2], turns[1::2], strict=True):
        asked.append((question.content, re.fullmatch(r"\\boxed\{(.*)\}", reply.content)[1]))
    for question, answer in asked:
        assert Fraction(answer) == ANSWERS[task](numbers(question)), question


def key(text: str) -> tuple[str, ...]:
    return tuple(sorted(re.findall(r"\d+(?:/\d+)?", text)))


@pytest.mark.parametrize("task", ["largest", "addition", "next_number", "larger_fraction"])
def test_no_seed_and_no_order_of_its_numbers_brings_a_held_out_problem_into_training(task):
    """`12 + 7` is held out together with `7 + 12`, and no example is a problem of either split."""
    parts: dict[str, set] = {"train": set(), "heldout": set(), "examples": set()}
    for seed in range(3):
        for split in ("train", "heldout"):
            found = problems(task, 3, split, 40, seed=seed, examples=2)
            parts[split] |= {key(problem.problem) for problem in found}
            parts["examples"] |= {key(turn.content) for turn in found[0].turns[::2]}
    assert len(parts["train"]) > 60 and len(parts["examples"]) == 2
    assert not parts["train"] & parts["heldout"]
    assert not parts["examples"] & (parts["train"] | parts["heldout"])


def test_a_seed_draws_the_same_again_and_another_one_others():
    first = problems("largest", 3, "train", 30, seed=1)
    assert problems("largest", 3, "train", 30, seed=1) == first
    assert problems("largest", 3, "train", 30, seed=2) != first
    assert len({problem.id for problem in first}) == 30
    assert problems("largest", 3, "train", 10, seed=1) == first[:10]


def test_a_config_chooses_task_difficulty_and_examples():
    source = {"_target_": "bandpo.data.generated.problems", "task": "addition", "difficulty": 2}
    found = load_problems({**source, "split": "heldout", "count": 5, "examples": 1})
    assert [problem.source for problem in found] == ["addition-2/heldout"] * 5
    assert len(found[0].turns) == 2
    (bare, *_) = load_problems({**source, "split": "heldout", "count": 5, "examples": 0})
    assert bare.turns == () and bare.problem == found[0].problem


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"task": "sums"}, "task=sums: the generated tasks are next_number, "),
        ({"split": "test"}, "split=test: a generated task has train and heldout"),
        ({"difficulty": 0}, "takes difficulty and count from 1"),
        ({"task": "next_number", "difficulty": 2, "count": 90}, "has fewer than 90 problems"),
    ],
)
def test_what_a_task_does_not_have_is_an_error_in_words(changed, message):
    arguments = {"task": "largest", "difficulty": 3, "split": "train", "count": 5, **changed}
    with pytest.raises(UserError, match=message):
        problems(**arguments)
