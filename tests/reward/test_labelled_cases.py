"""The verifier against common sense, written down case by case in labelled_cases.jsonl."""

import json
from collections import Counter
from pathlib import Path

import pytest

from bandpo.reward import MathVerifier

CASES = [json.loads(line) for line in (Path(__file__).parent / "labelled_cases.jsonl").open()]


@pytest.fixture(scope="module")
def judged():
    pairs = [(case["completion"], case["gold"]) for case in CASES]
    problems = [case.get("problem", "") for case in CASES]
    # the labels are those of a person who accepts nothing unevaluated
    with MathVerifier(timeout=20, lowest_form="strict") as verifier:
        return list(zip(CASES, verifier.score(pairs, problems), strict=True))


def test_agrees_with_common_sense(judged):
    assert len(CASES) >= 200
    wrong = [(case, score) for case, score in judged if score.status != case["status"]]
    shown = "\n".join(f"{c['gold']!r}, wanted {c['status']}: {s}" for c, s in wrong)
    assert len(wrong) <= 0.02 * len(CASES), shown
    # no kind of case may hide behind the others
    kinds, missed = Counter(c["kind"] for c in CASES), Counter(c["kind"] for c, _ in wrong)
    assert all(missed[kind] <= 0.1 * kinds[kind] for kind in kinds), shown


# Closed forms that took work: wrong by the strict rule of the labels, right by default.
CLOSED_FORMS = {r"\boxed{\sqrt{2601}}", r"\boxed{6!}", r"\boxed{\ln(e^2)}", r"\boxed{5+0i}"}
CLOSED_FORMS |= {r"\boxed{\frac{0}{5}}", r"\boxed{\lfloor 5/2 \rfloor}"}


def test_by_default_closed_forms_count_besides():
    cases = [case for case in CASES if case["kind"] in ("restating", "mixed")]
    pairs = [(case["completion"], case["gold"]) for case in cases]
    with MathVerifier(timeout=20) as verifier:
        scores = verifier.score(pairs, [case.get("problem", "") for case in cases])
    more = [c["completion"] for c, s in zip(cases, scores, strict=True) if s.status != c["status"]]
    assert len(more) == len(CLOSED_FORMS)
    assert all(any(form in completion for completion in more) for form in CLOSED_FORMS)


def test_values_follow_the_status(judged):
    assert all(score.value == (score.status == "correct") for _, score in judged)


def test_labels_are_not_trivial():
    statuses = Counter(case["status"] for case in CASES)
    assert min(statuses["correct"], statuses["wrong"]) > 0.25 * len(CASES)
