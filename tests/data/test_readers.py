"""What a file holds is what is read: numbers of any width, long cells, broken bytes and quotes."""

from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from bandpo.data.columns import Columns
from bandpo.data.readers import ExactFloats
from bandpo.data.rows import parse_rows
from bandpo.data.sources import load_problems
from bandpo.errors import UserError

DECIMALS = [0.1, 0.3, 1 / 3, 27.0, -2.5, 1e-05, 124.5]


def parquet(path: Path, answers, problems=None) -> Path:
    problems = problems or [f"q{i}" for i in range(len(answers))]
    columns = {"problem": pyarrow.array(problems), "answer": answers}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def answers(path) -> list[str]:
    return [problem.answer for problem in load_problems(path)]


@pytest.mark.parametrize(
    ("kind", "third"),
    [
        (pyarrow.float64(), "0.3333333333333333"),
        (pyarrow.float32(), "0.33333334"),
        (pyarrow.float16(), "0.3333"),
    ],
)
def test_a_float_of_any_width_is_the_shortest_decimal_that_gives_it_back(tmp_path, kind, third):
    values = np.array(DECIMALS, kind.to_pandas_dtype())
    found = answers(parquet(tmp_path / "a.parquet", pyarrow.array(values)))
    assert found == ["0.1", "0.3", third, "27", "-2.5", "0.00001", "124.5"]
    assert np.array([*map(float, found)], kind.to_pandas_dtype()).tolist() == values.tolist()


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (pyarrow.array([Decimal("3.00"), Decimal("0.50"), Decimal("-1200.00")]), "3 0.5 -1200"),
        (pyarrow.array([7, -7, 0], pyarrow.int8()), "7 -7 0"),
        (pyarrow.array([2**64 - 1], pyarrow.uint64()), str(2**64 - 1)),
        (pyarrow.array([0.0, -0.0, 1e22]), "0 0 1" + 22 * "0"),
        (pyarrow.array([Decimal("1" + 37 * "2")], pyarrow.decimal128(38, 0)), "1" + 37 * "2"),
        (pyarrow.array(["0.10", "3.0", "1e-5"]), "0.10 3.0 1e-5"),  # text stays as it is written
        (pyarrow.array(["0.1", "2"]).dictionary_encode(), "0.1 2"),
    ],
)
def test_numbers_become_the_digits_that_one_writes(tmp_path, array, expected):
    assert answers(parquet(tmp_path / "a.parquet", array)) == expected.split()


def test_narrow_floats_inside_structs_lists_and_dictionaries():
    narrow = pyarrow.float32()
    kind = pyarrow.struct({"x": narrow, "y": pyarrow.float64(), "z": pyarrow.list_(narrow)})
    value = {"x": np.float32(0.1), "y": 0.1, "z": [np.float32(0.7), None]}
    table = pyarrow.table({"s": pyarrow.array([value, None], kind), "i": [1, 2]})
    table = table.append_column("d", pyarrow.array([0.3, 0.3], narrow).dictionary_encode())
    exact = ExactFloats(table.schema)
    assert [exact(row) for row in table.to_pylist()] == [
        {"s": {"x": 0.1, "y": 0.1, "z": [0.7, None]}, "i": 1, "d": 0.3},
        {"s": None, "i": 2, "d": 0.3},
    ]


def test_a_hub_datasets_float32_is_read_alike(monkeypatch):
    import datasets

    features = datasets.Features(
        {"problem": datasets.Value("string"), "answer": datasets.Value("float32")}
    )
    table = datasets.Dataset.from_dict({"problem": ["q"], "answer": [0.1]}, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: table)
    assert answers("org/name") == ["0.1"]


def test_numpy_scalars_are_numbers():
    rows = [("row 0", {"problem": "a", "answer": np.float32(0.1)})]
    rows += [("row 1", {"problem": "b", "answer": np.int64(3)})]
    assert [p.answer for p in parse_rows(rows, Columns(), "x", "x")] == ["0.1", "3"]


# ------------------------------------------------------------------------------------- CSV


def csv_file(folder: Path, content: str | bytes) -> dict:
    data = content.encode() if isinstance(content, str) else content
    (folder / "a.csv").write_bytes(data)
    return {"path": folder / "a.csv", "bad_rows": "drop"}


@pytest.mark.parametrize("length", [131_072, 131_073, 5_000_000])
def test_a_long_cell_costs_no_row(tmp_path, length):
    long = "x" * length
    spec = csv_file(tmp_path, f'problem,answer,solution\na,1,s\nb,2,"{long}"\n{long},3,\nd,4,\n')
    assert answers(spec) == ["1", "2", "3", "4"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_line_ends_quotes_and_a_byte_order_mark(tmp_path, end, mark):
    content = end.join(["problem,answer", f'"a, ""b""{end}c",1', "", "5½ é,2"])
    problems = load_problems(csv_file(tmp_path, mark + content.encode()))
    assert [(p.problem, p.answer) for p in problems] == [(f'a, "b"{end}c', "1"), ("5½ é", "2")]


@pytest.mark.parametrize(
    "broken", ['b,"2\nc,3\nd,4\n', 'b,"2"x\nc,3\nd,4\n', 'b,"2\nc,"3"\nd,4\n', '"b""\n,3']
)
def test_a_broken_quote_is_an_error_even_where_bad_rows_are_dropped(tmp_path, broken):
    spec = csv_file(tmp_path, f'problem,answer\n"a\na",1\n{broken}')
    with pytest.raises(
        UserError, match=r"a\.csv: invalid CSV: .*row that begins at line 4; the rows"
    ):
        load_problems(spec)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (b"b\xff,2", "line 3: invalid CSV: column 'problem' is not UTF-8"),
        (b"b,\x002", "line 3: invalid CSV: a NUL byte in column 'answer'"),
        (b"b,2,3", "line 3: more fields than the header"),
        (b"b", r"line 3: no answer \(answer\)"),
    ],
)
def test_a_bad_row_costs_itself_alone(tmp_path, caplog, row, message):
    spec = csv_file(tmp_path, b"problem,answer\na,1\n" + row + b"\nc,3\nd,4\n")
    assert answers(spec) == ["1", "3", "4"]
    assert "1 of 4 rows" in caplog.text
    with pytest.raises(UserError, match=message):
        load_problems(spec | {"bad_rows": "error"})


def test_utf_16_is_named(tmp_path):
    with pytest.raises(UserError, match=r"a\.csv: not UTF-8 .*save it as UTF-8"):
        load_problems(csv_file(tmp_path, "problem,answer\na,1\n".encode("utf-16")))
