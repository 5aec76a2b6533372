import pytest

from bandpo.reward import MathReward, MathVerifier, ReleaseReward, disagreement_report
from bandpo.types import Completion, Group, Problem, Prompt


def group(name, gold, *texts):
    completions = tuple(Completion(text, (1,), (0.0,), "stop") for text in texts)
    return Group(Prompt(Problem(name, "?", gold), "?", ()), completions)


GROUPS = [
    group("a", "42", "Answer: 42", "Answer: 41", r"\boxed{42}", "Answer: 042"),
    group("b", r"\frac{1}{2}", "Answer: 0.5", r"Answer: \frac12", r"\boxed{1} Answer: 1/2"),
    group("c", "51", "Answer: 50\n\\boxed{37+14}\nAnswer: 51"),
]


@pytest.fixture(scope="module")
def report():
    with MathReward(MathVerifier(workers=1)) as math:
        return disagreement_report(GROUPS, math, ReleaseReward(), ("math", "release"))


def test_counts_and_examples(report):
    summary = report.summary()
    assert summary["completions"] == 8
    assert summary["both_correct"] == 2
    assert summary["only_math_correct"] == 3
    assert summary["only_release_correct"] == 1
    assert summary["both_wrong"] == 2
    assert summary["by_status"] == {
        "correct / no_answer": 1,
        "correct / wrong": 2,
        "wrong (unevaluated) / correct": 1,
    }
    assert {(e.problem_id, e.gold) for e in report.examples} == {
        ("a", "42"),
        ("b", r"\frac{1}{2}"),
        ("c", "51"),
    }


def test_the_text_shows_both_readings(report):
    text = report.render()
    assert "8 completions, 4 scored differently (50.0%)" in text
    assert "only math finds correct:  3" in text
    assert "problem c, reference '51'" in text
    assert "math: wrong (unevaluated), read '37+14'" in text
    assert "release: correct, read '51'" in text


def test_examples_are_limited(report):
    assert report.render(examples=1).count("reference") == 1
