"""What cleaning takes, and that a training set is the same each time it is built."""

import dataclasses
import json
import logging
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bandpo.cli import main
from bandpo.data import arithmetic
from bandpo.data.cleaning import (
    Decontaminate,
    Deduplicate,
    DropConflicts,
    DropControlCharacters,
    EnglishOnly,
    KeepValues,
)
from bandpo.data.composite import build, composite, read
from bandpo.data.overlap import BenchmarkIndex, ngrams, normalised
from bandpo.data.sources import load_problems
from bandpo.errors import UserError
from bandpo.types import Problem

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared/data")


def problems(*texts, answer="1"):
    return [Problem(str(i), text, answer) for i, text in enumerate(texts)]


def kept(step, rows):
    return [p.id for p in step(rows)]


def test_normalised_text_forgets_layout_but_no_sign_or_number():
    same = [
        r"Find $\left(\frac{1}{2}\right)^2$, \textbf{now}.",
        r"find \( ( \dfrac{1}{2} ) ^ 2 \)  now",
        r"FIND $\displaystyle\big(\tfrac{1}{2}\big)^{2}\,$; now?",
    ]
    first, *others = [[t for t in normalised(text) if t not in "()"] for text in same]
    assert all(other == first for other in others)
    different = ["1+2", "1-2", "1*2", "12", "1=2", "1<2", "1 2", "a 2", "b 2", "1/2", "2/1"]
    assert len({normalised(text) for text in different}) == len(different)
    assert normalised("3−2") == normalised("3-2")


def test_generated_problems_with_other_signs_are_no_copies():
    train = arithmetic.problems("train", 2000)
    index = BenchmarkIndex()
    index.add("arithmetic", arithmetic.problems("heldout", 200))
    assert index.overlaps(train) == []
    assert len(Deduplicate()(train)) == 2000


def test_overlap_is_the_share_of_the_benchmarks_ngrams():
    words = "one two three four five six seven eight nine ten eleven twelve".split()  # noqa: SIM905
    index = BenchmarkIndex(n=4, threshold=0.5)
    index.add("b", [Problem("x", " ".join(words), "1"), Problem("short", "Find $a$.", "1")])
    assert len(ngrams(words, 4)) == 9
    halves = {size: Problem("t", " ".join(["so", *words[:size], "end"]), "1") for size in (7, 8)}
    assert index.match(halves[7]) is None  # 4 of 9 n-grams
    found = index.match(halves[8])  # 5 of 9
    assert (found.problem_id, found.share, found.equal) == ("x", 5 / 9, False)
    whole = index.match(Problem("t", " ".join(words).upper() + "?", "2"))
    assert whole.equal and whole.share == 1
    assert index.match(Problem("t", r"find \( a \)", "3")).problem_id == "short"
    assert index.match(Problem("t", "find a and more", "3")) is None


def test_control_characters_are_mangled_latex_but_indentation_is_not():
    rows = problems(
        "\x0crac{1}{2}", "a\times b", "a\n\tindented\r\n    line\n", "\x08oxed", "fine", "\ud800"
    )
    assert kept(DropControlCharacters(), rows) == ["2", "4"]
    assert kept(DropControlCharacters(), problems("x", answer="\x0crac12")) == []


def test_other_scripts_go_and_mathematics_stays():
    rows = problems("求解 x", "найдите", "Let ℝ, 𝑥², α ≤ ½, naïve café, 90°", "a ∈ ℕ", "こんにちは")
    assert kept(EnglishOnly(), rows) == ["2", "3"]


def test_conflicts_and_copies():
    rows = [
        Problem("a", "Find $x$.", "097"),
        Problem("b", "find x", "97"),
        Problem("c", "Find y", "1"),
        Problem("d", "find $y$", "2"),
        Problem("e", "Find z", "1 / 2"),
        Problem("f", "find $z$.", "1/2"),
        Problem("g", "Find w", "0.5"),
    ]
    assert kept(DropConflicts(), rows) == ["a", "b", "e", "f", "g"]
    assert kept(Deduplicate(), DropConflicts()(rows)) == ["a", "e", "g"]


def test_values_of_a_column():
    rows = [Problem(str(i), "q", "1", meta={"level": i}) for i in range(1, 6)]
    rows.append(Problem("none", "q", "1"))
    assert kept(KeepValues("level", [3, 4, 5]), rows) == ["3", "4", "5", "none"]


def with_column(column, *values):
    return [Problem(str(i), "q", "1", "s", {column: value}) for i, value in enumerate(values)]


@pytest.mark.parametrize("wanted", [[3, 5], ["3", "5"], [3.0, "Level 5"], ["level 3", "LEVEL  5"]])
def test_a_value_counts_as_what_it_says(wanted):
    values = (5, "5", 5.0, "5.0", "Level 5", "level 3", " 3 ", 4, "Level 4", "Level ?", "nan", 15)
    rows = with_column("level", *values)
    assert kept(KeepValues("level", wanted), rows) == [str(i) for i in range(7)]
    rows = with_column("extra.level", *values)
    assert kept(KeepValues("extra.level", wanted), rows) == [str(i) for i in range(7)]


def test_words_and_the_source_are_values_too():
    rows = with_column("subject", "Algebra", "Number Theory", "algebra ", "subject")
    assert kept(KeepValues("subject", ["algebra"]), rows) == ["0", "2"]
    rows = [Problem("a", "q", "1", "gsm8k"), Problem("b", "q", "1", "math")]
    assert kept(KeepValues("source", ["math"]), rows) == ["b"]


def test_a_filter_that_would_drop_all_says_what_there_is():
    rows = with_column("level", "hard", "hard", "easy")
    rows.append(Problem("none", "q", "1"))
    with pytest.raises(
        UserError, match=r"KeepValues\(.*\[3, 4\].*'hard' \(2 rows\), 'easy' \(1 rows\)"
    ):
        KeepValues("level", [3, 4])(rows)


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (KeepValues("level", [1, 2]), "drops 3 (2 rows)"),
        (KeepValues("level", [1, 7, "x"]), "no row has [7, 'x']; there are 3 (2 rows), 1 (1 rows)"),
        (KeepValues("levle", [1]), "drops nothing: no row has this column, but level, source"),
    ],
)
def test_what_a_filter_drops_or_finds_nowhere_is_said(caplog, step, said):
    rows = with_column("level", 3, 3, 1) + with_column("level", 2)
    rows = rows[:3] if "7" in said else rows
    with caplog.at_level(logging.INFO):
        step(rows)
    assert len(caplog.records) == 1 and said in caplog.text


@pytest.fixture
def files(tmp_path):
    """Two training files and a benchmark, one of whose problems the first file rephrases."""
    rng = random.Random(0)
    vocabulary = [f"w{i}" for i in range(500)]
    texts = [" ".join(rng.choices(vocabulary, k=30)) for _ in range(20)]
    secret = " ".join(rng.choices(vocabulary, k=30))

    def write(name, rows):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / name)

    one = [{"prompt": t, "answer": i, "level": i % 5 + 1} for i, t in enumerate(texts[:12])]
    one.append({"prompt": f"Given that {secret} say more", "answer": 5, "level": 5})
    one.append({"prompt": "no answer", "answer": None})
    two = [{"id": i, "problem": t, "answer": i + 10} for i, t in enumerate(texts[10:])]
    return {
        "sources": [
            {"path": write("one.jsonl", one), "columns": {"problem": "prompt"}, "bad_rows": "drop"},
            write("two.jsonl", two),
        ],
        "benchmark": write("bench.jsonl", [{"problem": secret, "answer": 1}]),
    }


STEPS = (KeepValues("level", (3, 4, 5)), DropConflicts(), Deduplicate())


def test_a_composite_says_what_each_step_took(files, tmp_path, caplog):
    steps = (*STEPS, Decontaminate([f"file:{files['benchmark']}"]))
    with caplog.at_level(logging.INFO):
        found = composite(files["sources"], steps, "mix", str(tmp_path / "built"))
    # of 13 rows levels 3, 4, 5 are 7 (i = 2,3,4,7,8,9 and the secret); text 10 and 11 of `one`
    # have levels 1 and 2, so the copies in `two` neither conflict nor repeat
    lines = [r.getMessage() for r in caplog.records if "→" in r.getMessage()]
    assert lines == [
        "mix: KeepValues: 23 → 17 rows",
        "mix: DropConflicts: 17 → 17 rows",
        "mix: Deduplicate: 17 → 17 rows",
        "mix: Decontaminate: 17 → 16 rows",
    ]
    assert "no answer (answer)" in caplog.text
    assert len(found) == 16 and not any("Given that" in p.problem for p in found)
    assert {p.id.split("/")[0] for p in found} == {"one", "two"}
    dataset = build(files["sources"], steps, "mix", str(tmp_path / "built"))
    assert dataset.problems == found
    assert [(s["source"], s["rows"]) for s in dataset.sources] == [("one", 13), ("two", 10)]


def test_the_build_is_cached_reproducible_and_stamped(files, tmp_path):
    folder = str(tmp_path / "built")
    first = build(files["sources"], STEPS, "mix", folder)
    stamp = (first.folder / "dataset.json").stat().st_mtime_ns
    again = build(files["sources"], STEPS, "mix", folder)
    assert again == first and (again.folder / "dataset.json").stat().st_mtime_ns == stamp
    elsewhere = build(files["sources"], STEPS, "mix", str(tmp_path / "other"))
    assert elsewhere == dataclasses.replace(first, folder=elsewhere.folder)
    assert elsewhere.folder.name == first.folder.name
    fewer = build(files["sources"], STEPS[:1], "mix", folder)
    assert fewer.folder != first.folder
    with open(files["sources"][1], "a") as file:
        file.write('{"problem": "new", "answer": 3}\n')
    assert build(files["sources"], STEPS, "mix", folder).sha256 != first.sha256
    train = first.folder / "train.jsonl"
    train.write_text(train.read_text().replace("w1", "w2", 1))
    with pytest.raises(UserError, match="was changed after it was built"):
        read(first.folder)


def test_nothing_left_is_an_error_and_leaves_nothing(files, tmp_path):
    folder = tmp_path / "built"
    with pytest.raises(UserError, match="left no rows: Nothing 13 → 0"):
        build([files["sources"][0]], (Nothing(),), "mix", str(folder))
    assert not folder.exists()


@dataclasses.dataclass(frozen=True)
class Nothing:
    """A filter that keeps no row, or none of a source."""

    of: str = ""

    def __call__(self, problems):
        return [p for p in problems if self.of and not p.id.startswith(self.of)]


def test_a_source_of_which_nothing_is_left_is_named(files, tmp_path, caplog):
    build(files["sources"], (Nothing(of="one/"),), "mix", str(tmp_path / "built"))
    assert "left none of the 13 rows of one" in caplog.text


def same_name(folder, names, text="{name} {i}"):
    """Files whose rows have the same ids, at these places."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        rows = [{"id": i, "problem": text.format(name=name, i=i), "answer": i} for i in range(3)]
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [str(folder / name) for name in names]


def test_two_files_of_one_name_are_two_sources(tmp_path):
    names = ["a/train.jsonl", "b/train.jsonl", "train-2.jsonl", "c/train.jsonl"]
    dataset = build(same_name(tmp_path, names), folder=str(tmp_path / "built"))
    expected = ["train", "train-3", "train-2", "train-4"]
    assert [source["source"] for source in dataset.sources] == expected
    assert [p.id for p in dataset.problems] == [f"{n}/{i}" for n in expected for i in range(3)]
    assert build(same_name(tmp_path, names), folder=str(tmp_path / "built")) == dataset


def test_one_file_twice_leaves_its_first_rows(tmp_path):
    sources = 2 * same_name(tmp_path, ["train.jsonl"])
    dataset = build(sources, (Deduplicate(),), folder=str(tmp_path / "built"))
    assert [p.id for p in dataset.problems] == ["train/0", "train/1", "train/2"]


def test_what_cannot_be_read_again_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("bandpo.data.composite.distinct", lambda names: list(names))
    folder = tmp_path / "built"
    for _ in range(2):  # the second time is like the first
        with pytest.raises(UserError, match="duplicate id"):
            build(same_name(tmp_path, ["a/t.jsonl", "b/t.jsonl"]), folder=str(folder))
        assert list(folder.iterdir()) == []


def test_a_composite_from_a_configuration(files, tmp_path):
    spec = {
        "_target_": "bandpo.data.composite.composite",
        "sources": files["sources"],
        "cleaning": [{"_target_": "bandpo.data.cleaning.Deduplicate"}],
        "folder": str(tmp_path / "built"),
    }
    assert len(load_problems(spec)) == 13 + 10 - 2
    with pytest.raises(UserError, match="clean"):
        load_problems({**spec, "clean": []})
    spec["cleaning"] = [{"_target_": "bandpo.data.cleaning.KeepValues", "columm": 1}]
    with pytest.raises(UserError, match="columm"):
        load_problems(spec)
    with pytest.raises(UserError, match="no such file"):
        load_problems({**spec, "cleaning": [], "sources": ["nowhere.jsonl"]})


def test_the_build_command(files, tmp_path, capsys):
    sources = f"[{{path: {files['sources'][0]['path']}, columns: {{problem: prompt}}, "
    sources += f"bad_rows: drop}}, {files['sources'][1]}]"
    arguments = [
        *("data", "build", "data=dapo_math", f"data.train.sources={sources}"),
        f"data.train.folder={tmp_path / 'built'}",
        "data.train.cleaning=[{_target_: bandpo.data.cleaning.Deduplicate}]",
    ]
    assert main(arguments) == 0
    output = capsys.readouterr().out
    assert "21 problems" in output
    alone = subprocess.run(
        [sys.executable, "-m", "bandpo.cli", *arguments], capture_output=True, text=True, check=True
    )
    lines = [x for x in (alone.stdout + alone.stderr).splitlines() if x.startswith("dapo_math:")]
    assert len(lines) == len(set(lines)) == 2, lines  # the filter, and the content
    assert main(["data", "build", "data=nothing"]) == 2


def test_the_check_command(tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    rows = [("Find x", "1"), ("find $x$", "1"), ("求 y", "2"), ("\x0crac12", "0.5")]
    path.write_text("".join(json.dumps({"problem": p, "answer": a}) + "\n" for p, a in rows))
    assert main(["data", "check", str(path), "--fast"]) == 1
    output = capsys.readouterr().out
    for line in (
        "4 problems, 3 with integer",
        "1 repeated",
        "1 rows with control",
        "1 rows in ano",
    ):
        assert line in output
    path.write_text(json.dumps({"problem": "1+1", "answer": "2"}) + "\n")
    assert main(["data", "check", str(path), "--fast"]) == 0
    path.write_text("{}\n")
    assert main(["data", "check", str(path), "--fast"]) == 2


def test_the_check_command_asks_the_verifier(tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    rows = [{"id": "good", "problem": "a", "answer": r"\frac{1}{2}"}]
    rows.append({"id": "bad", "problem": "b", "answer": r"\frac{\frac{"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["data", "check", str(path)]) == 1
    output = capsys.readouterr().out
    assert re.search(r"1 answers the verifier cannot read:\n\s+bad: ", output)


@needs_shared
def test_dapo_gives_problems_of_the_benchmarks_away(capsys, tmp_path):
    out = tmp_path / "overlaps.jsonl"
    arguments = ["data", "overlap", str(SHARED / "dapo_sample.jsonl"), "amc23", "aime24", "math500"]
    assert main([*arguments, "--root", str(SHARED), "--out", str(out)]) == 1
    rows = [json.loads(line) for line in out.open()]
    assert {(r["benchmark"], r["problem_id"]) for r in rows} >= {
        ("amc23", "amc23-12A-3"),
        ("amc23", "amc23-12A-7"),
        ("math500", "test/geometry/702.json"),
    }
    assert not [r for r in rows if r["benchmark"] == "aime24"]
    assert "of 1000 training problems occur in a benchmark" in capsys.readouterr().out
