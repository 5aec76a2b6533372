"""Votes by equality: strings where strings agree, one vote where answers are equal."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandpo.evaluation.measures.consensus import (
    MOST_COMPARED,
    votes_by_equality,
    votes_by_string,
)
from bandpo.evaluation.metrics import maj_at_k, majority_per_problem
from bandpo.evaluation.samples import Sample
from bandpo.evaluation.summary import per_problem_values, read_summaries, summarize, write_summaries
from bandpo.reward import MathVerifier


def samples(*answers, gold="1", problem="p"):
    """A group: an answer equal to the gold is right, None is no answer, `!x` a timeout on x."""
    return [
        Sample(
            problem_id=problem,
            sample=index,
            status="correct" if a == gold else "no_answer" if a is None else "wrong",
            extracted=a,
            answer=gold,
            tokens=1,
            truncated=False,
            seed=0,
            prompt="",
            completion="",
        )
        if not (a or "").startswith("!")
        else Sample(problem, index, "timeout", a[1:], gold, 1, False, 0, "", "")
        for index, a in enumerate(answers)
    ]


class Equality:
    """Equal where a table says so, and where strings are the same; counts what it is asked."""

    def __init__(self, *classes):
        self.classes, self.asked = classes, []

    def __call__(self, pairs):
        self.asked += pairs
        return [a == b or any({a, b} <= set(c) for c in self.classes) for a, b in pairs]


def test_equal_answers_are_one_vote_and_the_right_one_loses_to_it():
    group = samples("1", "1", "1/2", "0.5", r"\frac12", "7", None)
    equal = Equality(("1/2", "0.5", r"\frac12"))
    (votes,) = votes_by_equality([group], equal)
    assert votes == ["1", "1", "1/2", "1/2", "1/2", "7", None]
    correct = [[s.correct for s in group]]
    assert maj_at_k(correct, 7, votes_by_string([group])) == 1.0
    assert maj_at_k(correct, 7, [votes]) == 0.0
    assert all(answer != "1" for pair in equal.asked for answer in pair)  # right ones are known


def test_a_chain_of_equalities_joins_whatever_the_order():
    chains = (("a", "b"), ("b", "c"), ("d", "e"))
    for order in itertools.permutations("abcde"):
        (votes,) = votes_by_equality([samples(*order)], Equality(*chains))
        by_answer = dict(zip(order, votes, strict=True))
        assert len({by_answer[x] for x in "abc"}) == 1
        assert by_answer["d"] == by_answer["e"] != by_answer["a"]


@given(st.lists(st.sampled_from(["1", "2", "3", " 2", "4", None]), min_size=1, max_size=9))
def test_where_only_strings_are_equal_it_is_the_majority_of_strings(answers):
    group = samples(*answers)
    correct = [[s.correct for s in group]]
    by_string, by_equality = votes_by_string([group]), votes_by_equality([group], Equality())
    for k in range(1, len(answers) + 1):
        assert (
            majority_per_problem(correct, k, by_equality)
            == majority_per_problem(correct, k, by_string)
        ).all()


def test_a_tie_counts_its_share_and_failed_answers_are_not_compared():
    group = samples("1", "1", "a", "b", "!x", "!x")
    equal = Equality(("a", "b"))
    (votes,) = votes_by_equality([group], equal)
    assert votes == ["1", "1", "a", "a", "x", "x"]
    assert maj_at_k([[s.correct for s in group]], 6, [votes]) == pytest.approx(1 / 3)
    assert equal.asked == [("b", "a")]


def test_the_rarer_answer_is_compared_with_the_more_frequent_one_and_few_are():
    frequent = [f"a{i}" for i in range(50) for _ in range(50 - i)]
    equal = Equality()
    votes_by_equality([samples(*frequent), samples("1")], equal)
    assert len(equal.asked) == MOST_COMPARED * (MOST_COMPARED - 1) // 2
    assert all(int(rare[1:]) > int(reference[1:]) for rare, reference in equal.asked)


def test_the_verifiers_equality_and_what_it_takes():
    pairs = [
        (r"\frac12", "0.5"),
        ("0.5", "1/2"),
        ("50\\%", "0.5"),
        ("3", "4"),
        (r"2^{10}", "1024"),
        (r"\{1,2\}", "2,1"),
        ("x+1", "1+x"),
        ("", "3"),
        ("$$$ ???", "3"),
    ]
    with MathVerifier() as verifier:
        found = verifier.equal(pairs)
        group = samples(r"\frac{1}{2}", "0.5", "1/2", "7", r"\frac 12", "1")
        (votes,) = votes_by_equality([group], verifier.equal)
    assert found == [True, True, True, False, True, True, True, False, False]
    assert len({votes[i] for i in (0, 1, 2, 4)}) == 1 and len(set(votes)) == 3


def test_a_summary_has_it_and_so_does_the_file(tmp_path):
    groups = [
        samples("1", "1", "a", "b", "b", problem="p"),
        samples("1", "2", "3", "4", "5", problem="q"),
    ]
    equal = Equality(("a", "b"))
    summary = summarize("toy", {"n": 5}, groups, equal=equal)
    assert per_problem_values(summary, "cons@5") == {"p": 0.0, "q": pytest.approx(1 / 5)}
    assert per_problem_values(summary, "maj@5") == {"p": 0.5, "q": pytest.approx(1 / 5)}
    assert summary.metrics["cons@1"].value == pytest.approx(summary.metrics["mean@5"].value)
    assert summary.metrics["cons@5"].value == pytest.approx(np.mean([0.0, 0.2]))
    write_summaries(tmp_path, [summary])
    assert read_summaries(tmp_path)["toy"].problems == summary.problems
    without = summarize("toy", {"n": 5}, groups)
    assert not any(name.startswith("cons") for name in without.metrics)
    logged = {name.split("/")[2].partition("@")[0] for name in summary.scalars() if "@" in name}
    assert logged == {"mean", "pass", "best", "maj"}  # what runs have always logged
