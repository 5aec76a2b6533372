"""Every file that holds rows is read: packed, sharded, marked, or written by a library."""

import bz2
import gzip
import json
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from bandpo.config.composition import compose
from bandpo.config.schema import Config
from bandpo.data.benchmarks import load_benchmark
from bandpo.data.sources import load_problems, parse_source
from bandpo.errors import UserError

ROWS = [{"problem": f"What is {i}+{i}? é", "answer": str(2 * i)} for i in range(3)]
WANTED = [(row["problem"], row["answer"]) for row in ROWS]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
CSV = "problem,answer\n" + "".join(f"{p},{a}\n" for p, a in WANTED)
PAIRS = [
    [{"from": "human", "value": p}, {"from": "assistant", "ground_truth": {"value": a}}]
    for p, a in WANTED
]
BOM = "\ufeff"


def gz(content: bytes) -> bytes:
    """Without the time, so that tests have the same names in every process."""
    return gzip.compress(content, mtime=0)


def zstd(data: bytes) -> bytes:
    return pyarrow.compress(data, codec="zstd", asbytes=True)


def columnar() -> str:
    """As pandas writes a frame where nothing else is asked for."""
    names = ("problem", "answer")
    return json.dumps({n: {str(i): row[n] for i, row in enumerate(ROWS)} for n in names})


def read(path):
    return [(p.problem, p.answer) for p in load_problems(path)]


FILES = {
    "a.jsonl": LINES,
    "a.ndjson": LINES,
    "lines.json": LINES,
    "mark.jsonl": BOM + LINES,
    "crlf.jsonl": LINES.replace("\n", "\r\n"),
    "list.json": json.dumps(ROWS),
    "pretty.json": BOM + json.dumps(ROWS, indent=2).replace("\n", "\r\n"),
    "list.jsonl": json.dumps(ROWS),
    "within.json": json.dumps({"version": 1, "data": ROWS}, indent=1),
    "columns.json": columnar(),
    "pairs.json": json.dumps(PAIRS),
    "pairs.jsonl": "".join(json.dumps(pair) + "\n" for pair in PAIRS),
    "a.csv": CSV,
    "a.tsv": CSV.replace(",", "\t"),
    "semicolons.csv": CSV.replace(",", ";"),
    "tabs.csv": CSV.replace(",", "\t"),
    "crlf.tsv": BOM + CSV.replace(",", "\t").replace("\n", "\r\n"),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("end", "packed"), [("", bytes), (".gz", gz), (".zst", zstd), (".bz2", bz2.compress)]
)
def test_a_text_file_is_read_whatever_it_is_packed_with(name, end, packed, tmp_path):
    path = tmp_path / f"{name}{end}"
    path.write_bytes(packed(FILES[name].encode()))
    assert read(path) == WANTED
    assert parse_source(str(path)).name == name.split(".")[0]


def test_one_line_of_json_is_a_row(tmp_path):
    for name, row in {
        "plain.jsonl": ROWS[0],
        "chat.json": {"prompt": [{"role": "user", "content": WANTED[0][0]}], "answer": 0},
        "more.json": {**ROWS[0], "generations": [{"text": "a"}]},
    }.items():
        (tmp_path / name).write_text(json.dumps(row))
        assert read(tmp_path / name) == WANTED[:1]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b'[{"problem": 1},\n{"answer"', r"a\.json: a JSON list that .* line 2 column"),
        ("a.jsonl", b'[{"problem": 1}, {"answer"', "a JSON list that cannot be read: invalid JSON"),
        ("a.json", b'{"problem": "x", "answer"\n', "line 1: invalid JSON"),
        ("a.json", b"[]", "no rows"),
        ("a.json", b"[1, 2]", "row 1: expected an object with columns, got int"),
        ("a.jsonl", LINES.encode("utf-16"), "not UTF-8 .*iconv -f UTF-16 -t UTF-8 .*a_utf8.jsonl"),
        ("a.json", LINES.encode("utf-16-be"), "not UTF-8"),
        ("a.jsonl", LINES.encode("utf-32"), "not UTF-8"),
        ("a.tsv", CSV.encode("utf-16"), "not UTF-8"),
        ("a.jsonl.gz", gz(LINES.encode())[:-20], r"a\.jsonl\.gz: cannot be read as gz"),
        ("a.jsonl.gz", b"no gzip", "cannot be read as gzip"),
        ("a.jsonl.zst", zstd(LINES.encode())[:-9], "cannot be read as zstd"),
        ("a.csv.gz", gz(CSV.encode("utf-16")), "not UTF-8"),
        ("a.arrow", b"no arrow", "not a readable Arrow file"),
        ("a.parquet.gz", b"x", "unknown extension '.gz'"),
        ("a.xlsx", b"x", r"unknown extension '\.xlsx'; use one of \.arrow, \.csv, .*compressed"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_problems({"path": tmp_path / name})


def test_the_command_that_makes_utf_8_of_it_names_a_new_file(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(LINES.encode("utf-16"))
    with pytest.raises(UserError) as told:
        load_problems(tmp_path / "a.jsonl")
    words = str(told.value).split(": ")[-1].split()
    assert words[0] == "iconv" and words[-3:] == [
        str(tmp_path / "a.jsonl"), ">", str(tmp_path / "a_utf8.jsonl")
    ]  # fmt: skip


# --- Several files -----------------------------------------------------------------------------


def shard(folder: Path, name: str, rows=ROWS) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_folder_of_shards_is_one_dataset(tmp_path):
    for i, row in enumerate(ROWS):
        shard(tmp_path / "math/data", f"train-0000{i}-of-00003.parquet", [row])
    shard(tmp_path / "math/.cache", "test-old.parquet")
    (tmp_path / "math/README.md").write_text("# Math")
    assert read(tmp_path / "math") == WANTED
    assert parse_source(str(tmp_path / "math")).name == "math"
    shard(tmp_path / "math/data", "train-00002-of-00003.parquet", [{"problem": "", "answer": "1"}])
    with pytest.raises(UserError, match=r"train-00002-of-00003\.parquet row 1: no problem"):
        load_problems(tmp_path / "math")


@pytest.mark.parametrize(
    "names", [("train-{}.parquet", "{}-test.parquet"), ("train/{}.jsonl", "test/{}.jsonl")]
)
def test_splits_of_a_folder_are_named_by_patterns_that_work(tmp_path, names, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i, row in enumerate(ROWS):
        shard(tmp_path / "math", names[0].format(i), [row])
        shard(tmp_path / "math", names[1].format(i), [{"problem": f"held out {i}", "answer": "1"}])
    with pytest.raises(UserError, match="math: holds several splits or formats") as told:
        load_problems("./math")
    ways = [way.split("'")[0] for way in str(told.value).split("data.train='")[1:]]
    found = []
    for way in ways:
        config = compose("train", ["model.path=a/model", f"data.train={way}"], Config)
        found.append(sorted(read(config.data.train)))
    assert sorted(WANTED) in found and [p for p, _ in found[0]] != [p for p, _ in found[1]]
    assert len(found) == 2 and all(len(rows) == 3 for rows in found)


def test_a_held_out_file_is_not_trained_on_by_mistake(tmp_path):
    shard(tmp_path, "math.jsonl")
    shard(tmp_path, "math_test.jsonl")
    with pytest.raises(UserError, match="several splits"):
        load_problems(tmp_path)


def test_a_pattern(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i, row in enumerate(ROWS):
        shard(tmp_path, f"part-{i}.jsonl", [row])
    source = parse_source("part-*.jsonl")
    assert (source.name, [p.answer for p in source.problems()]) == ("part", ["0", "2", "4"])
    assert parse_source("file:*.jsonl").name == tmp_path.name
    assert len(load_benchmark("file:part-[01].jsonl").problems) == 2
    with pytest.raises(UserError, match=r"part-\*\.csv: no file matches"):
        load_problems("part-*.csv")


def test_what_the_datasets_library_saved(tmp_path):
    table = datasets.Dataset.from_list(ROWS)
    table.save_to_disk(tmp_path / "one", num_shards=2)
    assert read(tmp_path / "one") == WANTED
    assert read(tmp_path / "one/data-00000-of-00002.arrow") == WANTED[:2]
    datasets.DatasetDict({"train": table, "test": table}).save_to_disk(tmp_path / "two")
    with pytest.raises(UserError, match=r"name data\.train='.*two/train' or data\.train='.*two/te"):
        load_problems(tmp_path / "two")
    assert read(tmp_path / "two/train") == WANTED


def test_an_arrow_file(tmp_path):
    table = pyarrow.Table.from_pylist([{**row, "answer": 0.1} for row in ROWS])
    table = table.cast(pyarrow.schema({"problem": pyarrow.string(), "answer": pyarrow.float32()}))
    with pyarrow.ipc.new_file(tmp_path / "a.arrow", table.schema) as file:
        file.write_table(table)
    assert [answer for _, answer in read(tmp_path / "a.arrow")] == ["0.1"] * 3


def test_a_folder_without_data(tmp_path):
    (tmp_path / "notes.txt").write_text("none")
    with pytest.raises(UserError, match=r"is a folder without data files \(\.arrow, \.csv"):
        load_problems(tmp_path)
