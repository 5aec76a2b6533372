"""Chats in a column: turns before and the last user turn, from whatever they are written as."""

import dataclasses
import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from bandpo.data.benchmarks import content_sha256
from bandpo.data.cleaning import (
    Deduplicate,
    DropConflicts,
    DropControlCharacters,
    EnglishOnly,
    KeepValues,
)
from bandpo.data.columns import Columns
from bandpo.data.composite import build
from bandpo.data.overlap import BenchmarkIndex
from bandpo.data.rows import content_id, parse_rows
from bandpo.data.sources import load_problems
from bandpo.errors import UserError
from bandpo.types import Problem, Turn


def said(role, content, keys=("role", "content")):
    return dict(zip(keys, (role, content), strict=True))


CHAT = [
    said("system", "Be brief."),
    said("user", "Let x = 2."),
    said("assistant", "Yes?"),
    said("user", " What is x + x?\n"),
]
NAMES = {"system": "system", "user": "human", "assistant": "gpt"}
SHAREGPT = [said(NAMES[m["role"]], m["content"], ("from", "value")) for m in CHAT]
PARTS = [
    *CHAT[:3],
    said("user", [{"type": "text", "text": " What is"}, {"type": "text", "text": "x + x?"}]),
]
TURNS = (Turn("system", "Be brief."), Turn("user", "Let x = 2."), Turn("assistant", "Yes?"))


def parsed(*rows, **columns):
    numbered = [(f"row {i}", row) for i, row in enumerate(rows)]
    return parse_rows(numbered, Columns(**columns), "f", "f")


@pytest.mark.parametrize(
    "chat",
    [CHAT, tuple(CHAT), np.array(CHAT, dtype=object), json.dumps(CHAT), SHAREGPT],
    ids=["list", "tuple", "array", "JSON text", "ShareGPT"],
)
@pytest.mark.parametrize("column", ["prompt", "messages", "conversations", "problem"])
def test_a_chat_is_turns_and_a_last_user_turn(chat, column):
    (problem,) = parsed({column: chat, "answer": 4})
    assert (problem.problem, problem.answer) == ("What is x + x?", "4")
    assert problem.turns == TURNS
    assert problem.conversation == "Be brief.\n\nLet x = 2.\n\nYes?\n\nWhat is x + x?"


def test_parts_of_text_are_lines_of_one_turn():
    (problem,) = parsed({"prompt": PARTS, "answer": 4})
    assert (problem.problem, problem.turns) == ("What is\nx + x?", TURNS)


def test_chats_out_of_a_parquet_file(tmp_path):
    """Arrow gives every message and part the keys of all others, empty where they had none."""
    parts = [{"type": "text", "text": "x + x?", "image": None}]
    table = pyarrow.table(
        {
            "prompt": pyarrow.array([[*CHAT], [{**said("user", "1+1?"), "tool_calls": []}]]),
            "parts": pyarrow.array([[said("user", parts)]] * 2),
            "reward_model": [{"ground_truth": ["4"]}, {"ground_truth": np.array(["2"])}],
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    first, second = load_problems(tmp_path / "a.parquet")
    assert (first.turns, first.answer) == (TURNS, "4")
    assert (second.problem, second.turns, second.answer) == ("1+1?", (), "2")
    spec = {"path": tmp_path / "a.parquet", "columns": {"problem": "parts"}}
    assert load_problems(spec)[0].problem == "x + x?"


@pytest.mark.parametrize(
    ("chat", "fault"),
    [
        (CHAT[:3], r"ends with a turn of the assistant, .*problem=prompt\.1\.content takes that"),
        (SHAREGPT[:3], r"problem=prompt\.1\.value takes"),
        (CHAT[:1], "has no user turn"),
        ([CHAT[1], CHAT[0], CHAT[3]], "a system turn that is not its first"),
        ([said("tool", "3"), CHAT[3]], "has a turn of 'tool'; there are system, user, human"),
        ([said("user", [{"type": "image_url", "image_url": "u"}])], "part of type 'image_url'"),
        ([said("user", [{"type": "text"}])], "part of type 'text'"),
        ([said("user", 7)], r"problem \(prompt\.0\.content\) is not text but int"),
        ([said("user", None)], "is not text but NoneType"),
        ([said("user", " ")], r"problem \(prompt\.0\.content\) is empty"),
        ([{**CHAT[2], "tool_calls": [{"id": 1}]}, CHAT[3]], r"\(prompt\.0\) calls tools"),
        ([said("user", "a \ud800"), CHAT[2], CHAT[3]], "no valid Unicode"),
    ],
)
def test_chats_that_are_no_prompt(chat, fault):
    with pytest.raises(UserError, match=f"row 0: .*{fault}"):
        parsed({"prompt": chat, "answer": 4})


def test_the_path_in_a_fault_reads_the_row():
    sft = [said("user", "1+1?"), said("assistant", r"It is \boxed{2}")]
    with pytest.raises(UserError, match=r"data\.columns\.problem=messages\.0\.content takes"):
        parsed({"messages": sft, "answer": 2})
    (problem,) = parsed(
        {"messages": sft},
        problem="messages.0.content",
        answer="messages.1.content",
        answer_in_box=True,
    )
    assert (problem.problem, problem.answer, problem.turns) == ("1+1?", "2", ())


# --- A problem is its whole conversation ------------------------------------------------------


def problem(text, *before, answer="1"):
    return Problem(text, text, answer, turns=tuple(Turn("user", b) for b in before))


def test_an_id_knows_the_turns_and_stays_what_it_was_without_them():
    assert content_id("a  b", "1") == "6f58cef30083f34f"
    ids = {
        content_id("b", "1"),
        content_id("b", "1", [Turn("user", "a")]),
        content_id("b", "1", [Turn("assistant", "a")]),
        content_id("b", "1", [Turn("user", "c")]),
        content_id("a b", "1"),
    }
    assert len(ids) == 5
    row = {"prompt": CHAT, "answer": 4}
    other = {"prompt": [said("system", "Be long."), *CHAT[1:]], "answer": 4}
    assert len({p.id for p in parsed(row, other)}) == 2


def test_the_hash_of_a_dataset_knows_the_turns():
    plain, led = problem("q"), problem("q", "a")
    assert len({content_sha256([p]) for p in (plain, led, problem("a q"))}) == 3


def test_filters_look_at_every_turn():
    kept = [problem("which?", "a cat"), problem("which?", "a dog", answer="2"), problem("which?")]
    assert Deduplicate()(kept) == DropConflicts()(kept) == kept
    assert len(Deduplicate()([*kept, dataclasses.replace(kept[0], id="again")])) == 3
    assert EnglishOnly()([problem("which?", "кот"), kept[0]]) == [kept[0]]
    assert DropControlCharacters()([problem("which?", "\frac{1}{2}"), kept[0]]) == [kept[0]]


def test_contamination_is_found_in_an_earlier_turn():
    text = "A bag holds three red and five blue balls, and two are drawn. How likely are both red?"
    index = BenchmarkIndex()
    index.add("bench", [Problem("b1", text, "3/28"), Problem("b2", "What is 7 times 8?", "56")])
    for long in (problem("And blue?", text), problem("And blue?", f"Hello. {text} Bye.")):
        found = index.match(long)
        assert (found.problem_id, found.train_id) == ("b1", "And blue?")
    short = index.match(problem("And 9 times 8?", "What is 7 times 8?"))
    assert (short.problem_id, short.equal) == ("b2", True)
    assert index.match(problem("And 9 times 8?", "Hello")) is None


def test_a_built_dataset_keeps_the_turns(tmp_path):
    rows = [{"prompt": CHAT, "answer": 4, "level": 1}, {"prompt": "1+1?", "answer": 2, "level": 2}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = build([tmp_path / "a.jsonl"], [KeepValues("level", [1, 2])], folder=str(tmp_path))
    assert [p.turns for p in found.problems] == [TURNS, ()]
    assert [p.problem for p in found.problems] == ["What is x + x?", "1+1?"]
