import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bandpo.reward.extract import Extraction, extract


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        (r"\boxed{1} and then \boxed{2}", "2"),
        (r"\boxed{\frac{1}{\sqrt{2}}}", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{\left\{x\right.}", r"\left\{x\right."),  # an escaped brace does not group
        ("\\boxed {\n 7 \n}", "7"),
        (r"\fbox{7}", "7"),
        (r"\boxed 7", "7"),
        (r"\boxed{7} as you wanted it in \boxed{}", "7"),
        (r"Answer: 3 \boxed{4}", r"4"),
        ("Answer: 3\nAnswer: 4", "4"),
        ("**Final Answer:**\n\n $x$ \nmore", "$x$"),
        ("the answer is: 5", "5"),
        ("Answer:5", "5"),
        ("ANSWER : 5", "5"),
        ("Answer：5", "5"),
        ("<think>\\boxed{1}</think>\\boxed{2}", "2"),
        ("\\boxed{1}</think>\\boxed{2}", "2"),
        # sentences after the answer
        (
            "Final Answer: The final answer is $24$. I hope it is correct.",
            "The final answer is $24$",
        ),
        ("Answer: 42. The other root is negative.", "42"),
        ("Answer: 3.14", "3.14"),
        ("Answer: x=3 or x=4", "x=3 or x=4"),
        ("Answer:\n\\[\n\\frac{3}{5}\n\\]\nDone.", r"\frac{3}{5}"),
        ("The answer is: $$\n42\n$$", "42"),
        ("Final Answer: The final answer is:\n\\[ 7 \\]", "7"),
        ("答案：42", "42"),
        ("故选：D", "D"),
        # several boxes
        (r"$\boxed{1}$, $\boxed{2}$, and $\boxed{3}$", "1, 2, 3"),
        (r"\[\boxed{k=45} \quad \text{and} \quad \boxed{n=2}\]", "k=45, n=2"),
        (r"$x = \boxed{1}$ and $y = \boxed{2}$", "x =1, y =2"),
        (r"$\boxed{1}$ or $\boxed{2}$", "1, 2"),
        (r"$\boxed{1}$, so the answer is $\boxed{2}$", "2"),
        ("$\\boxed{1}$\n\n$\\boxed{2}$", "2"),
        (r"$\boxed{1}$, $\boxed{1}$", "1"),
        ("The final answer is $24$. I hope it is correct.", "$24$"),
        ("Answer: 3\nThe final answer is 4.", "3"),
        ("答案是24元。", "24元。"),
    ],
)
def test_finds_the_final_answer(completion, answer):
    assert extract(completion) == Extraction(answer)


@pytest.mark.parametrize(
    "completion", ["", "42", "the answer is 42", "\\boxed{}", "answered: no", "答案是它"]
)
def test_finds_none(completion):
    assert extract(completion) == Extraction(None)


@pytest.mark.parametrize(
    "completion",
    [
        r"\boxed{4",
        r"\boxed{\frac{1}{2}",
        r"\boxed{1}. Wait, \boxed{2",
        r"\boxed{1}. Wait, \boxed",
        r"\boxed{1}. Wait, \box",
        r"\boxed{1}. Wait, \boxed{",
        "So,\nAnswer:",
        "<think> \\boxed{1} and so on",
    ],
)
def test_cut_off_is_no_answer(completion):
    assert extract(completion) == Extraction(None, truncated=True)


def test_reasoning_may_be_opened_by_the_prompt():
    assert extract(r"so \boxed{1}", prompt="user: …\nassistant: <think>\n").truncated
    assert extract(r"so \boxed{1}</think>\boxed{2}", prompt="… <think>\n").answer == "2"


def test_answers_after_the_reasoning_only():
    assert extract(r"<think>\boxed{1}</think> I gave up.") == Extraction(None)


PROMPT = (
    "Solve the problem. The last line should be of the form Answer: $Answer (without quotes).\n"
    "A friend is convinced that it must be \\boxed{12}. How many months has a year?\n"
    'Remember to put your answer on its own line after "Answer:".'
)


def test_an_echo_of_the_prompt_is_no_answer():
    assert extract(PROMPT, PROMPT) == Extraction(None)
    assert extract("You said:  " + PROMPT.replace(" ", "  "), PROMPT) == Extraction(None)
    assert extract(PROMPT) != Extraction(None)


def test_an_answer_beside_an_echo_counts():
    assert extract(PROMPT + "\nIt is \\boxed{12}.", PROMPT).answer == "12"
    assert extract(PROMPT + "\nThere are twelve.\nAnswer: 12", PROMPT).answer == "12"
    assert extract("It is \\boxed{7}. You asked: " + PROMPT, PROMPT).answer == "7"


def test_a_short_answer_that_the_prompt_contains_counts():
    assert extract("Answer: 5", "Example.\nAnswer: 5\nNow you.").answer == "5"


def test_free_extraction_is_a_switch():
    assert extract("it is 42").answer is None
    found = extract("it is 42", free=True)
    assert found.free and found.answer == "it is 42"
    assert not extract("it is \\boxed{42}", free=True).free


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("\\{}boxedfAnswer: \n$12<think>/"), max_size=200))
def test_any_text_is_read(text):
    found = extract(text, text[:50])
    answers = [] if found.answer is None else [found.answer, *found.answer.split(", ")]
    assert not answers or answers[0] in text or all(part in text for part in answers[1:])


@pytest.mark.parametrize(
    "text",
    [
        "{" * 10_000 + "}" * 10_000,
        "\\boxed{" * 20_000,
        "\\boxed{" + "{" * 100_000,
        "\\boxed{" + "a" * 100_000 + "}",
        "Answer:" * 20_000,
        "answer" + " *" * 50_000,
        "\\" * 100_000,
        "\n" * 100_000 + "Answer:" + "\n" * 100_000,
        "</think>" * 20_000,
    ],
)
def test_is_linear_in_the_text(text):
    start = time.process_time()
    extract(text, "a prompt " * 1000)
    assert time.process_time() - start < 0.5
