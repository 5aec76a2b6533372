"""A multiple-choice reference is a letter: which completions earn it."""

import pytest

from bandpo.reward import MathVerifier

QUESTION = "Which is it?\n\nA) 12 cm\nB) 13 cm\nC) the second\nD) none of them"
RIGHT = (
    r"so \boxed{B}",
    r"\boxed{\text{B}}",
    r"\boxed{(B)}",
    r"\boxed{\textbf{(B)}}",
    r"\boxed{\text{Option B}}",
    r"\boxed{B. 13}",
    "Answer: B",
    "**Answer: B**",
    "Answer: (B)",
    "Therefore, the final answer is: $\\boxed{B}$. I hope it is correct",
    r"<think>it is \boxed{A}</think> \boxed{B}",
)
WRONG = (
    r"\boxed{A}",
    r"\boxed{13 cm}",
    r"\boxed{A, B}",
    r"\boxed{A \text{ or } B}",
    r"\boxed{\text{not B}}",
    "Answer: C",
    "B",
    r"<think>it is \boxed{B}",
)


@pytest.fixture(scope="module")
def scores():
    with MathVerifier(lowest_form="off") as verifier:
        given = [*RIGHT, *WRONG]
        found = verifier.score([(text, "B") for text in given], [QUESTION] * len(given))
        return dict(zip(given, found, strict=True))


@pytest.mark.parametrize("completion", RIGHT)
def test_a_letter_earns_in_every_form(scores, completion):
    assert scores[completion].status == "correct"


@pytest.mark.parametrize("completion", WRONG)
def test_nothing_else_does(scores, completion):
    assert scores[completion].status != "correct"
