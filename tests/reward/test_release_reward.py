import pytest

from bandpo.reward.release import WINDOW, normalise, string_score


@pytest.mark.parametrize(
    ("completion", "gold", "status"),
    [
        ("So.\nAnswer: 42", "42", "correct"),
        ("So.\nAnswer: $42$", "42", "correct"),
        ("answer:42.", "42", "correct"),
        ("Answer: 41\nAnswer: 42", "42", "correct"),
        ("Answer: 42\nAnswer: 41", "42", "wrong"),
        ("Answer: x = 42", "42", "correct"),
        ("Answer: \\boxed{42}", "42", "correct"),
        ("Answer: \\frac12", "\\frac{1}{2}", "correct"),
        ("Answer: \\dfrac{1}{2}", "\\frac{1}{2}", "correct"),
        ("Answer: 1,234", "1234", "correct"),
        ("Answer: 90^\\circ", "90", "correct"),
        ("Answer: 5 \\text{ miles}", "5", "correct"),
        # what a rule about strings cannot see
        ("Answer: 0.5", "\\frac{1}{2}", "wrong"),
        ("Answer: 042", "42", "wrong"),
        ("\\boxed{42}", "42", "no_answer"),
        ("", "42", "no_answer"),
        ("Answer: 42" + " " * WINDOW, "42", "no_answer"),
        ("Answer: 42" + " " * (WINDOW - 10), "42", "correct"),
    ],
)
def test_the_last_answer_line_as_a_string(completion, gold, status):
    score = string_score(completion, gold)
    assert score.status == status
    assert score.value == (1.0 if status == "correct" else -1.0)


def test_values_can_be_chosen():
    assert string_score("Answer: 1", "1", correct=1.0, wrong=0.0).value == 1.0
    assert string_score("Answer: 2", "1", correct=1.0, wrong=0.0).value == 0.0


@pytest.mark.parametrize("answer", ["42", "\\frac{1}{2}", "\\sqrt{2}", "(1,2)", "x+1"])
def test_normal_forms_are_fixed_points(answer):
    assert normalise(normalise(answer)) == normalise(answer)
