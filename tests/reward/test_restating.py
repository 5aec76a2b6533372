"""What only says the problem again earns nothing; what took work does."""

import pytest

from bandpo.data.arithmetic import problems
from bandpo.reward import MathVerifier
from bandpo.reward.restating import restates

RESTATED = [
    ("2^{10}", "1024", "Compute $2^{10}$."),
    ("5!", "120", "What is $5!$?"),
    (r"\binom52", "10", r"What is $\dbinom{5}{2}$?"),
    (r"\frac{6}{\sqrt{3}}", r"2\sqrt3", r"Rationalize $\frac{6}{\sqrt{3}}$."),
    ("|{-5}|", "5", "What is $|-5|$?"),
    (r"\sqrt{12}", r"2\sqrt{3}", r"Simplify $\sqrt{12}$."),
    ("37+14", "51", "37+14="),
    ("14+37", "51", "What is $37+14$?"),
    ("x=37+14", "51", "What is $37+14$?"),
    ("102/2", "51", r"Simplify $\frac{102}{2}$."),
    (r"\frac{102}{2}", "51", "Tom shares 102 apples among 2 friends. How many has each?"),
]
WORKED = [
    ("51", "51", "What is $37+14$?"),
    (r"\frac12", r"\frac12", "Simplify $1/2$."),
    ("2^{10}", "1024", "How many subsets has a set of 10 elements?"),
    ("2^{10}", "1024", "Compute $2^{100}/2^{90}$."),
    (r"\frac24", r"\frac12", "What is the probability of heads?"),
    (r"\log_2 8", "3", "Solve $2^x=8$."),
    (r"\sqrt{12}", r"2\sqrt{3}", "Find the height."),
    (r"\frac{\pi}{4}", r"\pi/4", r"Find $x$ in $(0,\frac{\pi}{4}]$."),
    (r"\sqrt{2}", r"\sqrt2", r"Let $y=\sqrt{2}$. Find $y$."),
]


@pytest.mark.parametrize(("answer", "gold", "problem"), RESTATED)
def test_an_expression_of_the_problem_is_no_answer(answer, gold, problem):
    assert restates(answer, gold, problem)


@pytest.mark.parametrize(("answer", "gold", "problem"), WORKED)
def test_what_took_work_is(answer, gold, problem):
    assert not restates(answer, gold, problem)


def test_three_settings():
    pairs = [(r"\boxed{2^{10}}", "1024")] * 2 + [(r"\boxed{30+21}", "51")]
    texts = ["Compute $2^{10}$.", "How many subsets has a set of 10?", "What is 37+14?"]
    earned = {}
    for form in ("restated", "strict", "off"):
        with MathVerifier(lowest_form=form) as verifier:
            earned[form] = [score.correct for score in verifier.score(pairs, texts)]
    assert earned == {
        "restated": [False, True, False],
        "strict": [False, False, False],
        "off": [True, True, True],
    }


@pytest.mark.parametrize("form", ["restated", "strict"])
def test_the_embedded_task_is_not_answered_by_its_own_problem(form):
    tasks = problems("heldout", 200, seed=3)
    expressions = [problem.id.removeprefix("arithmetic-") for problem in tasks]
    assert all({"+", "-"} & set(expression) for expression in expressions)
    golds = [problem.answer for problem in tasks]
    echoes = [(rf"\boxed{{{e}}}", gold) for e, gold in zip(expressions, golds, strict=True)]
    rights = [(rf"\boxed{{{gold}}}", gold) for gold in golds]
    texts = [problem.problem for problem in tasks]
    with MathVerifier(lowest_form=form) as verifier:
        assert not any(score.correct for score in verifier.score(echoes, texts))
        assert not any(score.correct for score in verifier.score(echoes))
        assert all(score.correct for score in verifier.score(rights, texts))
