"""The examples of docs/verifier.md: what the page calls equal is, and nothing else is."""

import json
import re
from pathlib import Path

import pytest

from bandpo.reward.equality import judge

PAGE = Path(__file__).resolve().parents[2] / "docs" / "verifier.md"


def examples() -> list[tuple[str, str, bool]]:
    """(reference, answer, whether the page calls them equal) of its tables of three columns."""
    found = []
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [re.findall(r"`([^`]+)`", cell) for cell in line.strip("|").split(" | ")]
        if line.startswith("| `") and len(cells) == 3 and len(cells[0]) == 1:
            (gold,) = cells[0]
            found += [(gold, answer, True) for answer in cells[1]]
            found += [(gold, answer, False) for answer in cells[2]]
    return found


def test_the_page_has_examples_of_both_kinds():
    verdicts = [equal for *_, equal in examples()]
    assert verdicts.count(True) > 100 and verdicts.count(False) > 80


@pytest.mark.parametrize(("gold", "answer", "equal"), examples())
def test_the_page_is_right(gold, answer, equal):
    assert (judge(answer, gold, lowest_form="off") == "equal") is equal


@pytest.mark.parametrize("gold", sorted({gold for gold, *_ in examples()}))
def test_every_reference_of_the_page_equals_itself(gold):
    assert judge(gold, gold) == "equal"


def test_every_reference_of_the_labelled_cases_equals_itself():
    lines = (
        (Path(__file__).parent / "labelled_cases.jsonl").read_text(encoding="utf-8").splitlines()
    )
    cases = [json.loads(line) for line in lines]
    golds = {case["gold"] for case in cases if case["status"] != "bad_gold"}
    assert len(golds) > 200
    assert [gold for gold in sorted(golds) if judge(gold, gold) != "equal"] == []
