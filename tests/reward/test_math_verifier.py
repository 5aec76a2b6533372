import logging
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from bandpo.reward import (
    MathReward,
    MathVerifier,
    Score,
    bad_golds,
    has_bad_gold,
    verifier_counts,
    verifier_version,
)
from bandpo.reward.pool import WorkerPool
from bandpo.types import Completion, Group, Problem, Prompt


@pytest.fixture(scope="module")
def verifier():
    with MathVerifier(timeout=20) as verifier:
        yield verifier


def group(answer, *completions, problem="?", prompt="?", truncated=()):
    return Group(
        Prompt(Problem("p1", problem, answer), prompt, (1, 2)),
        tuple(
            Completion(text, (1,), (0.0,), "length" if i in truncated else "stop")
            for i, text in enumerate(completions)
        ),
    )


def boxed(answer):
    return rf"It is \boxed{{{answer}}}."


def test_order_is_kept(verifier):
    pairs = [(boxed(rf"\frac{{{i}}}{{7}}"), rf"\frac{{{i % 3 + 1}}}{{7}}") for i in range(1, 7)]
    expected = [i == i % 3 + 1 for i in range(1, 7)]
    assert [score.correct for score in verifier.score(pairs)] == expected


def test_score_of_nothing(verifier):
    assert verifier.score([]) == []


def test_scores_say_what_was_read(verifier):
    (score,) = verifier.score([(boxed("x = \\frac{1}{2}"), "0.5")])
    assert score.value == 1.0 and score.status == "correct"
    assert score.extracted == "x = \\frac{1}{2}" and 0 < score.seconds < 20


def test_values_are_chosen():
    with MathVerifier(correct=1.0, wrong=-1.0) as verifier:
        scores = verifier.score([(boxed(1), "1"), (boxed(2), "1"), ("?", "1")])
        assert [score.value for score in scores] == [1.0, -1.0, -1.0]


@pytest.mark.parametrize("fast_path", [True, False])
def test_plain_numbers_need_no_worker(monkeypatch, fast_path):
    requests = []
    submit = WorkerPool.submit
    monkeypatch.setattr(WorkerPool, "submit", lambda pool, r: requests.append(r) or submit(pool, r))
    pairs = [
        (boxed("033"), "33"),
        (boxed("1,234"), "1234"),
        (boxed("2.50"), "2.5"),
        (boxed(3), "4"),
    ]
    with MathVerifier(fast_path=fast_path) as verifier:
        assert [s.correct for s in verifier.score(pairs)] == [True, True, True, False]
    assert len(requests) == (0 if fast_path else 4)


def test_identical_pairs_are_verified_once(monkeypatch):
    requests = []
    submit = WorkerPool.submit
    monkeypatch.setattr(WorkerPool, "submit", lambda pool, r: requests.append(r) or submit(pool, r))
    with MathVerifier() as verifier:
        texts = [f"Reasoning {i}. " + boxed("2/4") for i in range(50)]
        first = verifier.score([(text, r"\frac{1}{3}") for text in texts])
        again = verifier.score([(text, r"\frac{1}{3}") for text in texts])
        other = verifier.score([(texts[0], r"\frac{2}{3}")])
    assert len(requests) == 2
    assert first == again and {s.status for s in first + other} == {"wrong"}


def test_the_cache_is_bounded():
    with MathVerifier(cache_size=3) as verifier:
        verifier.score([(boxed("x"), f"x+{i}") for i in range(10)])
        assert len(verifier._cache) == 3


def test_free_extraction_is_a_switch(verifier):
    assert verifier.score([("so it is 1/2", r"\frac12")])[0].status == "no_answer"
    with MathVerifier(free_extraction=True) as free:
        texts = ["so it is $\\frac{1}{2}$", "so it is 0.5", "it is 43", "it is $\\frac{2}{4}$"]
        scores = free.score([(text, r"\frac12") for text in texts])
        assert [score.correct for score in scores] == [True, True, False, True]


def test_restating_is_a_switch(verifier):
    pair = (boxed("37+14"), "51")
    with MathVerifier(lowest_form="off") as lenient:
        assert lenient.score([pair])[0].correct
    (score,) = verifier.score([pair])
    assert (score.value, score.status, score.detail) == (0.0, "wrong", "unevaluated")
    with MathVerifier(lowest_form="strict") as strict:
        assert strict.score([pair])[0].detail == "no_numeral"


def test_an_expression_copied_from_the_problem_is_no_answer(verifier):
    pairs = [(boxed(r"\sqrt{12}"), r"2\sqrt{3}")] * 2
    scores = verifier.score(pairs, [r"Simplify $\sqrt{12}$.", "Find the height."])
    assert [score.correct for score in scores] == [False, True]
    assert scores[0].detail == "restated"


def test_bad_gold_does_not_depend_on_the_completion(verifier):
    texts = [boxed(1), "no answer", r"\boxed{1", boxed("}{"), boxed("9" * 5000)]
    assert {s.status for s in verifier.score([(t, r"\frac{1}{") for t in texts])} == {"bad_gold"}


def test_too_large_answers_are_refused_unparsed(verifier):
    for answer in ["1" * 100_000, "(" * 10_000 + ")" * 10_000, "1.5E+9999999"]:
        (score,) = verifier.score([(boxed(answer), r"\frac{1}{2}")])
        assert (score.status, score.detail) == ("wrong", "too_large")


def test_works_from_many_threads(verifier):
    pairs = [(boxed(f"x+{i % 5}"), f"{i % 7}+x") for i in range(70)]
    expected = [i % 5 == i % 7 for i in range(70)]
    assert threading.current_thread() is threading.main_thread()
    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(lambda _: verifier.score(pairs), range(8)))
    assert all([score.correct for score in scores] == expected for scores in results)


def test_a_closed_verifier_says_so():
    verifier = MathVerifier()
    verifier.close()
    with pytest.raises(RuntimeError, match="closed"):
        verifier.score([(boxed("x"), "y")])


def test_an_unusable_environment_is_an_error_not_a_zero(monkeypatch):
    """A worker without math-verify must end the run, not score everything 0."""
    monkeypatch.setattr(sys, "executable", _python_without_math_verify())
    with MathVerifier() as verifier:
        pairs = [(boxed("x"), "x+0"), (boxed("y"), "y+0"), (boxed("z"), "z+0")]
        with pytest.raises(RuntimeError, match="No module named"):
            verifier.score(pairs)


def _python_without_math_verify():
    return getattr(sys, "_base_executable", None) or "/usr/bin/python3"


# --- groups -----------------------------------------------------------------------------------


def test_groups_are_scored_as_they_come():
    with MathReward(MathVerifier(workers=1)) as reward:
        first = reward.submit(group("1", boxed(1), boxed(2)))
        assert [score.correct for score in first.result(timeout=60)] == [True, False]


def test_the_prompt_and_the_problem_are_looked_at():
    prompt = r"Write the result as \boxed{51} or the like. What is 37+14 in decimal notation?"
    with MathReward(MathVerifier(workers=1)) as reward:
        scores = reward.submit(
            group("51", prompt, boxed("51"), problem="37+14", prompt=prompt)
        ).result()
    assert [score.status for score in scores] == ["no_answer", "correct"]


def test_a_completion_cut_off_by_the_limit_is_truncated():
    with MathReward(MathVerifier(workers=1)) as reward:
        scores = reward.submit(
            group("1", "thinking", "thinking", boxed(1), truncated=(0, 2))
        ).result()
    assert [score.status for score in scores] == ["truncated", "no_answer", "correct"]


def test_bad_gold_is_reported_once_a_problem(caplog):
    with MathReward(MathVerifier(workers=1)) as reward, caplog.at_level(logging.WARNING):
        for _ in range(3):
            scores = reward.submit(group(r"\frac{1}{", boxed(1), "nothing")).result()
            assert [score.status for score in scores] == ["bad_gold"] * 2
            assert has_bad_gold(scores)
    assert [("p1" in record.message) for record in caplog.records] == [True]


def test_counts():
    scores = [
        Score(1.0, "correct", "1", 0.0),
        Score(0.0, "wrong", "?", 0.0, "unparsed"),
        Score(0.0, "timeout", "9^9", 1.0),
        Score(0.0, "truncated", None, 0.0),
        Score(0.0, "truncated", None, 0.0),
    ]
    counts = verifier_counts(scores)
    assert counts["verifier/timeout"] == counts["verifier/unparsed"] == 1
    assert counts["verifier/truncated"] == 2
    assert counts["verifier/crashed"] == counts["verifier/bad_gold"] == 0
    assert verifier_counts([]).keys() == counts.keys()


def test_bad_golds_names_every_unreadable_row():
    answers = ["42", "", r"\frac12", "}{", r"\text{yes}", "x" * 5000, "B", "   "]
    problems = [Problem(str(i), "?", answer) for i, answer in enumerate(answers)]
    found = {problem.id: reason for problem, reason in bad_golds(problems)}
    assert found.keys() == {"1", "3", "5", "7"}
    assert "empty" in found["1"] and "}{" in found["3"] and "5000" in found["5"]


def test_version():
    version = verifier_version()
    assert version["name"] == "math-verify" and version["version"][0].isdigit()


def test_the_package_is_light():
    code = (
        "import sys, bandpo.reward; "
        "heavy = {'torch', 'vllm', 'deepspeed', 'transformers', 'sympy'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
