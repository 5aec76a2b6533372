"""`bandpo data check` of a file that cannot be read prints the overrides that read it."""

import json
import shlex

import pyarrow
import pyarrow.parquet
import pytest

from bandpo.config.composition import compose
from bandpo.config.schema import Config
from bandpo.data.sources import load_problems, parse_source
from bandpo.data.suggestions import suggestions

WORDS = ["one and one", "two and two", "three and three"]
SYSTEM = {"role": "system", "content": "Be brief."}


def user(text):
    return {"role": "user", "content": text}


def reply(text):
    return {"role": "assistant", "content": text}


def numbered(make):
    return [make(f"How many are {words}?", 2 * i) for i, words in enumerate(WORDS, 1)]


FILES = {
    "other names": numbered(lambda q, a: {"frage": q, "antwort": a, "level": 3}),
    "names with spaces": numbered(lambda q, a: {"The question": q, "Final Answer": a}),
    "a name that is a number": numbered(lambda q, a: {"1": q, "2": a}),
    "a name with quotes": numbered(lambda q, a: {'the "question"': q, "it's the answer": a}),
    "deep": numbered(lambda q, a: {"task": {"text": q}, "meta": {"gold": {"value": a}}}),
    "JSON in a text": numbered(lambda q, a: {"task": q, "extra": json.dumps({"result": a})}),
    "two questions": numbered(lambda q, a: {"question": q, "prompt": f"Q: {q}", "answer": a}),
    "supervised chats": numbered(
        lambda q, a: {"messages": [user(q), reply(rf"Hm. \boxed{{{a}}}")], "uuid": q}
    ),
    "supervised chats with a system turn": numbered(
        lambda q, a: {"messages": [SYSTEM, user(q), reply(f"<answer> {a} </answer>")]}
    ),
    "a sentence at the end": numbered(
        lambda q, a: {"problem": q, "solution": f"We count.\nSo the answer is {a}."}
    ),
    "hashes in a chat": numbered(lambda q, a: {"input": q, "output": f"We count.\n#### {a}"}),
    "several answers": numbered(lambda q, a: {"problem": q, "answer": [a, -a]}),
    "an answer in a struct": numbered(lambda q, a: {"problem": q, "answer": {"value": a}}),
    "a bad row": [*numbered(lambda q, a: {"problem": q, "answer": a}), {"problem": "?"}],
    "other names and a bad row": [
        *numbered(lambda q, a: {"frage": q, "antwort": a}),
        {"frage": "", "antwort": 1},
    ],
}


def write(tmp_path, rows, ending):
    path = tmp_path / f"the file.{ending}"
    if ending == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
@pytest.mark.parametrize("name", FILES)
def test_the_first_line_that_is_printed_reads_the_file(name, ending, tmp_path, command, capsys):
    path = write(tmp_path, FILES[name], ending)
    assert command("data", "check", "--fast", str(path)) == 2
    told = capsys.readouterr().err
    lines = told.split("These overrides read it:\n")[1].splitlines()
    words = shlex.split(lines[0])
    assert all(word.startswith(("data.columns.", "data.train=")) for word in words)
    data = compose("train", ["model.path=a/model", f'data.train="{path}"', *words], Config).data
    problems = load_problems(data.train, data.columns.named())
    assert [p.answer for p in problems] == ["2", "4", "6"]
    assert [p.problem for p in problems] == [f"How many are {w}?" for w in WORDS]
    assert f"{len(problems)} of {len(FILES[name])} rows, the first: How many are one" in lines[1]
    # And the same words behind the command itself find nothing to fix.
    if not words[-1].startswith("data.train="):
        assert command("data", "check", "--fast", str(path), *words) == 0


def test_a_file_that_is_read_gets_no_advice(tmp_path, command, capsys):
    path = write(tmp_path, numbered(lambda q, a: {"problem": q, "answer": a}), "jsonl")
    assert command("data", "check", "--fast", str(path)) == 0
    assert "overrides" not in "".join(capsys.readouterr())


@pytest.mark.parametrize("content", ["", "no JSON\n", '{"text": "a story"}\n', '{"n": 1}\n[2]\n'])
def test_where_nothing_reads_it_nothing_is_advised(content, tmp_path, command, capsys):
    path = tmp_path / "a.jsonl"
    path.write_text(content)
    assert command("data", "check", "--fast", str(path)) == 2
    assert "overrides" not in "".join(capsys.readouterr())


def test_a_column_that_is_named_is_kept(tmp_path):
    path = write(tmp_path, FILES["two questions"], "jsonl")
    source = parse_source({"path": path, "columns": {"problem": "prompt", "answer": "gold"}})
    assert suggestions(source) == []  # there is no such answer
    source = parse_source({"path": path, "columns": {"answer": "answer"}})
    found = suggestions(source)
    assert [s.overrides for s in found][:2] == [
        "data.columns.problem=question", "data.columns.problem=prompt"
    ]  # fmt: skip


def test_check_takes_columns_alone(tmp_path, command, capsys):
    path = write(tmp_path, FILES["other names"], "jsonl")
    assert command("data", "check", str(path), "data.root=x") == 2
    assert "data.root=x: check takes data.columns.<role>=<column>" in capsys.readouterr().err
