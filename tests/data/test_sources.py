"""Every way a data file can be wrong has one message that names the line and what to do."""

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from bandpo.data.columns import Columns
from bandpo.data.rows import content_id, parse_rows
from bandpo.data.sources import FileSource, GeneratedSource, HubSource, load_problems, parse_source
from bandpo.errors import UserError
from bandpo.types import Problem

ROWS = [{"id": f"p{i}", "problem": f"What is {i}+{i}?", "answer": str(2 * i)} for i in range(30)]


def jsonl(path: Path, rows) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


def test_the_three_formats_give_the_same_problems(tmp_path):
    from_jsonl = load_problems(jsonl(tmp_path / "a.jsonl", ROWS))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    lines = ["id,problem,answer"] + [f"{r['id']},{r['problem']},{r['answer']}" for r in ROWS]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    assert from_jsonl[3] == Problem("p3", "What is 3+3?", "6", "a", {})
    assert load_problems(tmp_path / "a.parquet") == from_jsonl
    assert load_problems(f"file:{tmp_path / 'a.csv'}") == from_jsonl


def test_one_bad_row_among_thirty_is_named(tmp_path):
    rows = [*ROWS]
    rows[16] = {**rows[16], "answer": "  "}
    path = jsonl(tmp_path / "a.jsonl", rows)
    with pytest.raises(UserError, match=r"a\.jsonl: 1 of 30 rows.*\n  - line 17: no answer"):
        load_problems(path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"problem": "x", "answer"', "line 2: invalid JSON"),
        ("[1, 2]", "line 2: expected an object"),
        ({"id": "x", "problem": "x"}, r"line 2: no answer \(answer\)"),
        ({"id": "x", "problem": "x", "answer": None}, "line 2: no answer"),
        ({"id": "x", "problem": "x", "answer": float("nan")}, "line 2: no answer"),
        ({"id": "x", "problem": "x", "answer": [1, 2]}, r"a list of 2, .*answer=answer\.0"),
        ({"id": "x", "problem": "x", "answer": []}, "line 2: no answer"),
        ({"id": "x", "problem": "x", "answer": {"a": 1}}, r"neither text .* it holds answer\.a$"),
        ({"id": "x", "problem": "x", "answer": True}, "line 2: answer .* bool"),
        ({"id": "x", "answer": "1"}, r"line 2: no problem \(problem\)"),
        ({"id": "x", "problem": " ", "answer": "1"}, "line 2: no problem"),
        ({"id": "x", "problem": [1], "answer": "1"}, "line 2: problem .* not text but list"),
        ({"id": "x", "problem": "x", "answer": float("inf")}, "line 2: no answer"),
        (r'{"id": "x", "problem": "x \ud800", "answer": "1"}', "line 2: no valid Unicode"),
        ({"id": "p0", "problem": "x", "answer": "1"}, "line 2: duplicate id 'p0', first at line 1"),
        ("[" * 100_000, "line 2: invalid JSON"),
    ],
)
def test_each_fault_of_a_row(tmp_path, row, message):
    with pytest.raises(UserError, match=message):
        load_problems(jsonl(tmp_path / "a.jsonl", [ROWS[0], row, ROWS[1]]))


def test_all_faults_come_together_up_to_twenty(tmp_path):
    rows = [ROWS[0], *({"problem": f"q{i}", "answer": ""} for i in range(25))]
    with pytest.raises(UserError) as caught:
        load_problems(jsonl(tmp_path / "a.jsonl", rows))
    lines = str(caught.value).splitlines()
    assert "25 of 26 rows" in lines[0]
    assert len(lines) == 22 and "line 21" in lines[20] and "5 more" in lines[21]


def test_a_missing_column_is_told_once(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{"q": "1+1", "answer": "2"}] * 3)
    with pytest.raises(UserError, match=r"columns answer, q\n.*columns\.problem=") as caught:
        load_problems(path)
    assert str(caught.value).count("no column") == 1
    assert len(load_problems({"path": path, "columns": {"problem": "q"}})) == 3


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "no rows"),
        ("a.jsonl", b"\n  \n", "no rows"),
        ("a.csv", b"", "no rows"),
        ("a.csv", b"problem,answer\n", "no rows"),
        ("a.csv", b"problem,answer\na,1,2\n", "line 2: more fields"),
        ("a.csv", b'problem,answer\na,"1\n', "invalid CSV"),
        ("a.csv", b"problem,answer\n\xff\xfe,1\n", "invalid CSV"),
        ("a.jsonl", b'{"problem": "\xff", "answer": "1"}\n', "line 1: invalid JSON"),
        ("a.parquet", b"no parquet", "not a readable parquet"),
        ("a.txt", b"x", "unknown extension '.txt'"),
        (None, b"", "no such file"),
    ],
)
def test_faults_of_whole_files(tmp_path, name, content, message):
    path = tmp_path / (name or "missing.jsonl")
    if name:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_problems(FileSource(path=path))


def test_ids_without_an_id_column_follow_the_content(tmp_path):
    rows = [{"problem": "a  b", "answer": "1"}, {"problem": "c", "answer": "2"}]
    first = load_problems(jsonl(tmp_path / "a.jsonl", rows))
    second = load_problems(jsonl(tmp_path / "b.jsonl", [*reversed(rows), rows[0]]))
    assert [p.id for p in first] == [content_id("a b", "1"), content_id("c", "2")]
    assert [p.id for p in second] == [first[1].id, first[0].id, first[0].id + "-2"]


def test_numbers_nested_columns_and_patterns(tmp_path):
    path = jsonl(
        tmp_path / "a.jsonl",
        [
            {"prompt": "q1", "reward_model": {"truth": 27.0}, "level": 3, "source": "s"},
            {"prompt": "q2", "reward_model": {"truth": "so\n#### 1,000 "}, "level": 4},
        ],
    )
    columns = {"problem": "prompt", "answer": "reward_model.truth"}
    problems = load_problems({"path": path, "columns": columns})
    assert (problems[0].answer, problems[0].source, problems[0].meta) == ("27", "s", {"level": 3})
    with pytest.raises(UserError, match=r"line 1: answer .* does not match '####"):
        load_problems({"path": path, "columns": {**columns, "answer_pattern": r"#### (.+)"}})


CHAT = [{"role": "system", "content": "s"}, {"role": "user", "content": "1+1?"}]


@pytest.mark.parametrize(
    ("prompt", "path"),
    [
        (CHAT, "prompt.1.content"),
        (CHAT, "prompt.-1.content"),
        (np.array(CHAT, dtype=object), "prompt.1.content"),
        ({"turns": CHAT}, "prompt.turns.1.content"),
        (json.dumps(CHAT), "prompt.1.content"),
        ([{"content": json.dumps({"text": ["1+1?"]})}], "prompt.0.content.text.0"),
    ],
)
def test_a_path_leads_through_whatever_holds_the_text(prompt, path):
    columns = Columns(problem=path, answer="reward_model.ground_truth", id="extra_info.index")
    truth = json.dumps({"ground_truth": "2"}) if isinstance(prompt, str) else {"ground_truth": 2}
    row = {"prompt": prompt, "reward_model": truth, "extra_info": {"index": "x7"}}
    problem = parse_rows([("row 0", row)], columns, "f", "f")[0]
    assert (problem.id, problem.problem, problem.answer) == ("x7", "1+1?", "2")


def test_chat_lists_in_a_parquet_file_as_verl_writes_them(tmp_path):
    rows = [
        {
            "data_source": "math_dapo",
            "prompt": [{"role": "user", "content": f"{i}+{i}?"}],
            "reward_model": {"ground_truth": str(2 * i), "style": "rule"},
            "extra_info": {"index": f"id-{i}", "level": i},
        }
        for i in range(5)
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    columns = {"problem": "prompt.0.content", "answer": "reward_model.ground_truth"}
    spec = {"path": tmp_path / "a.parquet", "columns": columns | {"id": "extra_info.index"}}
    problems = load_problems(spec)
    assert [(p.id, p.problem, p.answer) for p in problems] == [
        (f"id-{i}", f"{i}+{i}?", str(2 * i)) for i in range(5)
    ]
    assert problems[3].meta["extra_info.level"] == 3  # for KeepValues
    assert load_problems(spec | {"columns": columns | {"problem": "prompt"}})[3].problem == "3+3?"
    with pytest.raises(UserError, match=r"not text but dict; .*reward_model\.style: name one"):
        load_problems(spec | {"columns": columns | {"problem": "reward_model"}})
    message = r"no column 'reward_model\.truth'.*reward_model\.style"
    with pytest.raises(UserError, match=message) as told:
        load_problems(spec | {"columns": columns | {"answer": "reward_model.truth"}})
    assert "prompt" not in str(told.value).split("\n", 1)[1]
    with pytest.raises(UserError, match=r"no column 'prompt\.1\.content'"):
        load_problems(spec | {"columns": columns | {"problem": "prompt.1.content"}})


def repeated():
    return [Problem("same", "a", "1"), Problem("same", "b", "2")]


def unfit():
    return [Problem("a", "q", "1"), {"problem": "q"}, Problem("b", "q", " ")]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (repeated, "item 0: id 'same' is used 2 times"),
        (unfit, "item 1: .*dict\n.*item 2: no answer"),
    ],
)
def test_what_a_function_returns_are_problems_of_their_own(function, message):
    with pytest.raises(UserError, match=message):
        load_problems({"_target_": f"{__name__}.{function.__name__}"})


def test_what_a_string_or_mapping_spells(tmp_path):
    assert parse_source("org/name") == HubSource(hub="org/name")
    assert parse_source("file:x.parquet") == FileSource(path=Path("x.parquet"))
    generated = parse_source({"_target_": "bandpo.types.Problem", "id": "1"})
    assert isinstance(generated, GeneratedSource) and generated.model_extra == {"id": "1"}
    with pytest.raises(UserError, match="exactly one of path, hub, _target_"):
        parse_source({"hub": "a/b", "path": "c"})
    with pytest.raises(UserError, match=r"splitt: Extra inputs"):
        parse_source({"hub": "a/b", "splitt": "test"})
    with pytest.raises(UserError, match=r"no\.such\.function"):
        load_problems({"_target_": "no.such.function"})


def test_a_dataset_the_hub_does_not_have(monkeypatch):
    import datasets

    def missing(*args, **kwargs):
        raise datasets.exceptions.DatasetNotFoundError(f"no revision {kwargs['revision']}")

    monkeypatch.setattr(datasets, "load_dataset", missing)
    with pytest.raises(UserError, match=r"a/b \(split train, revision v9\): .*\n.*local file"):
        load_problems({"hub": "a/b", "revision": "v9"})


def test_hub_rows_are_named_by_row(monkeypatch):
    import datasets

    rows = [{"question": "1+1", "answer": "#### 2"}, {"question": "", "answer": "#### 2"}]
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: datasets.Dataset.from_list(rows))
    spec = {"hub": "a/b", "columns": {"problem": "question", "answer_pattern": "#### (.+)"}}
    with pytest.raises(UserError, match="row 1: no problem"):
        load_problems(spec)
    rows[1]["question"] = "2+2"
    assert [p.answer for p in load_problems(spec)] == ["2", "2"]


def test_paths_in_a_dataset_are_not_opened(tmp_path, monkeypatch):
    target = tmp_path / "secret.txt"
    target.write_text("not for the model")
    values = [str(target), f"file://{target}", f"@{target}", "../secret.txt", "~/.ssh/id_rsa"]
    names = ("id", "problem", "answer", "image", "url")
    path = jsonl(tmp_path / "data.jsonl", [dict.fromkeys(names, value) for value in values])
    opened: list[str] = []
    watching = True

    def watch(event, arguments):
        if watching and event == "open":
            opened.append(str(arguments[0]))

    sys.addaudithook(watch)
    problems = load_problems(path)
    watching = False
    assert [problem.problem for problem in problems] == values
    assert [problem.meta["image"] for problem in problems] == values
    assert any(path.endswith("data.jsonl") for path in opened)
    assert not [path for path in opened if "secret" in path or "id_rsa" in path]
