"""Every file of configs/benchmark against a stand-in of the columns that it states."""

import csv
from contextlib import nullcontext

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bandpo.data.audit import contamination
from bandpo.data.benchmarks import benchmark_spec, expanded, groups, load_benchmark
from bandpo.data.cleaning import Decontaminate
from bandpo.data.prompts import prompt_template
from bandpo.data.sources import HubSource
from bandpo.errors import UserError
from bandpo.types import Problem


def arena(*answers):
    """Rows as MathArena's sets have them."""
    rows = enumerate(answers, 1)
    return [
        {
            "problem_idx": i,
            "problem": f"Question {i}?",
            "answer": answer,
            "problem_type": ["Algebra"],
        }
        for i, answer in rows
    ]


OLYMPIAD = [
    {
        "id": 1606,
        "question": "Find all $x$.",
        "final_answer": ["$2, -1$"],
        "context": None,
        "error": None,
        "unit": None,
        "is_multiple_answer": True,
    },
    {
        "id": 1607,
        "question": "Compute $T$.",
        "final_answer": ["3", r"\frac{1}{2}"],
        "context": "Let $T=1$.",
        "error": "1e-1",
        "unit": "km",
        "is_multiple_answer": False,
    },
]
GPQA = [
    {
        "Record ID": f"rec{i}",
        "Question": f"Which is number {i}?",
        "Correct Answer": f"right {i}\n",
        "Incorrect Answer 1": f"wrong {i}a",
        "Incorrect Answer 2": f"wrong {i}b",
        "Incorrect Answer 3": f"wrong {i}c",
        "Subdomain": "Physics (general)",
    }
    for i in range(40)
]
# By the set's id, subset and split, which the file must ask for: its rows.
ROWS = {
    ("HuggingFaceH4/aime_2024", None, "train"): [{"id": 60, "problem": "Q?", "answer": "073"}],
    ("yentinglin/aime_2025", None, "train"): [{"id": "0", "problem": "Q?", "answer": "70"}],
    ("MathArena/aime_2026", None, "train"): arena(277, 62),
    ("math-ai/amc23", None, "test"): [{"id": 0, "question": "Q?", "answer": 27.0}],
    ("AI-MO/aimo-validation-amc", None, "train"): [
        {"id": 0, "problem": "Old?", "answer": 142.0, "url": "https://a"}
    ],
    ("rawsh/2024_AMC12", None, "train"): [
        {"id": 0, "problem": "New?", "answer": r"(0, \frac{1}{2})", "exam": "12A 2024"}
    ],
    ("HuggingFaceH4/MATH-500", None, "test"): [
        {"unique_id": "test/algebra/1.json", "problem": "Q?", "answer": r"\frac{3}{4}", "level": 2}
    ],
    ("openai/gsm8k", "main", "test"): [{"question": "Q?", "answer": "3 + 4 = 7\n#### 1,007"}],
    ("MathArena/hmmt_feb_2025", None, "train"): arena("103", r"\frac{1}{576}"),
    ("MathArena/hmmt_nov_2025", None, "train"): arena(r"\sqrt{2}+1"),
    ("MathArena/hmmt_feb_2026", None, "train"): arena(r"2^{99}"),
    ("MathArena/brumo_2025", None, "train"): arena(r"\frac{\sqrt{13}}{2}"),
    ("MathArena/cmimc_2025", None, "train"): arena(r"\frac{\pi}{4}"),
    ("ByteDance-Seed/BeyondAIME", None, "test"): [{"problem": "Q?", "answer": 25}],
    ("math-ai/minervamath", None, "test"): [{"question": "Q?", "answer": r"3.8 \times 10^{5}"}],
    ("Hothan/OlympiadBench", "OE_TO_maths_en_COMP", "train"): OLYMPIAD,
    ("Idavidrein/gpqa", "gpqa_diamond", "train"): GPQA,
}
# By the benchmark's name: ids and answers of the stand-in.
EXPECTED = {
    "aime24": [("60", "73")],
    "aime25": [("0", "70")],
    "aime26": [("1", "277"), ("2", "62")],
    "amc23": [("0", "27")],
    "amc22_24": [("aimo-validation-amc/0", "142"), ("2024_AMC12/0", r"(0, \frac{1}{2})")],
    "math500": [("test/algebra/1.json", r"\frac{3}{4}")],
    "gsm8k": [(None, "1007")],
    "hmmt_feb25": [("1", "103"), ("2", r"\frac{1}{576}")],
    "hmmt_nov25": [("1", r"\sqrt{2}+1")],
    "hmmt_feb26": [("1", "2^{99}")],
    "brumo25": [("1", r"\frac{\sqrt{13}}{2}")],
    "cmimc25": [("1", r"\frac{\pi}{4}")],
    "beyond_aime": [(None, "25")],
    "minerva_math": [(None, r"3.8 \times 10^{5}")],
    "olympiadbench": [("1606", "$2, -1$"), ("1607", r"3, \frac{1}{2}")],
}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The hub with these rows alone, each set read from a parquet file."""

    def load_dataset(hub, subset, split, revision):
        import datasets

        path = tmp_path / "rows.parquet"
        pq.write_table(pa.Table.from_pylist(ROWS[hub, subset, split]), path)
        return datasets.Dataset(datasets.table.InMemoryTable(pq.read_table(path)))

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    monkeypatch.setattr("bandpo.data.readers.tables.asked_once", lambda hub: nullcontext())


def test_every_set_of_the_hub_has_a_stand_in():
    assert {*EXPECTED, "gpqa_diamond"} == set(groups()["all"])


@pytest.mark.parametrize("name", EXPECTED)
def test_a_file_reads_the_columns_that_it_states(hub, name):
    benchmark = load_benchmark(name)
    found = [(p.id, p.answer) for p in benchmark.problems]
    assert [answer for _, answer in found] == [answer for _, answer in EXPECTED[name]]
    for (one, _), (expected, _) in zip(found, EXPECTED[name], strict=True):
        assert one == expected or expected is None
    assert all(p.problem.endswith("?") or "." in p.problem for p in benchmark.problems)
    size = f"has {len(found)} problems, expected {benchmark_spec(name).size}"
    assert any(size in warning for warning in benchmark.warnings)
    assert not benchmark.multiple_choice


def test_olympiadbench_puts_the_context_first_and_names_tolerances(hub):
    benchmark = load_benchmark("olympiadbench")
    assert [p.problem for p in benchmark.problems] == [
        "Find all $x$.",
        "Let $T=1$.\n\nCompute $T$.",
    ]
    assert (
        "1 problems have a tolerance (column error), which is not applied" in benchmark.warnings[0]
    )
    assert benchmark.warnings[0].endswith("1607")


def test_a_published_set_that_repeats_a_problem_is_evaluated_as_it_is(monkeypatch):
    twice = [Problem("a", "Q?", "1"), Problem("b", "q?", "1")]
    monkeypatch.setattr(HubSource, "problems", lambda self: twice)
    benchmark = load_benchmark("brumo25")
    assert len(benchmark.problems) == 2
    assert "the same problem under ids a, b" in " ".join(benchmark.warnings)


def test_choices_have_letters_in_an_order_that_follows_from_the_id(hub, tmp_path):
    benchmark = load_benchmark("gpqa_diamond")
    assert benchmark.multiple_choice and len(benchmark.problems) == 40
    letters = set()
    for i, problem in enumerate(benchmark.problems):
        question, blank, *lines = problem.problem.splitlines()
        assert (question, blank, len(lines)) == (f"Which is number {i}?", "", 4)
        assert [line[:3] for line in lines] == ["A) ", "B) ", "C) ", "D) "]
        choices = {f"right {i}", *(f"wrong {i}{letter}" for letter in "abc")}
        assert {line[3:] for line in lines} == choices
        assert f"{problem.answer}) right {i}" in lines
        letters.add(problem.answer)
    assert letters == set("ABCD")
    assert load_benchmark("gpqa_diamond") == benchmark
    reversed_rows = {row["Record ID"]: row for row in reversed(GPQA)}
    with (tmp_path / "gpqa_diamond.csv").open("w", newline="") as file:  # as the hub's own file
        writer = csv.DictWriter(file, GPQA[0])
        writer.writeheader()
        writer.writerows(reversed_rows.values())
    local = load_benchmark("gpqa_diamond", tmp_path)
    assert sorted(local.problems, key=lambda p: int(p.id[3:])) == [
        Problem(p.id, p.problem, p.answer, "gpqa_diamond", p.meta) for p in benchmark.problems
    ]
    assert local.sha256 == benchmark.sha256
    other = {"name": "other", **benchmark_spec("gpqa_diamond").model_dump(exclude={"name"})}
    other["choices"] = {"wrong": ["Incorrect Answer 1"], "seed": 1}
    assert "C) " not in load_benchmark(other).problems[0].problem


def test_choices_that_are_missing_are_named(tmp_path):
    (tmp_path / "gpqa_diamond.csv").write_text(
        "Record ID,Question,Correct Answer,Incorrect Answer 1,Incorrect Answer 2\nr1,Q?,1,2,3\n"
    )
    with pytest.raises(UserError, match=r"'r1': no choice in column 'Incorrect Answer 3'"):
        load_benchmark("gpqa_diamond", tmp_path)


def test_a_gated_set_says_what_to_do(monkeypatch):
    def refused(self):
        raise UserError("cannot load this dataset")

    monkeypatch.setattr(HubSource, "problems", refused)
    with pytest.raises(UserError, match="gated: accept its terms") as told:
        load_benchmark("gpqa_diamond")
    assert "with the columns Question, Correct Answer, Incorrect Answer 1" in str(told.value)
    with pytest.raises(UserError) as told:
        load_benchmark("aime24")
    assert "gated" not in str(told.value)


def test_the_prompt_of_a_choice_asks_for_a_letter():
    assert "letter" in prompt_template("choice").text
    assert "LETTER" in prompt_template("letter_line").text


def test_groups_and_list_files_stand_for_their_benchmarks(tmp_path):
    assert "gpqa_diamond" not in groups()["math"] and "arithmetic" not in groups()["all"]
    assert set(groups()["all"]) == {*groups()["math"], "gpqa_diamond"}
    assert expanded(["math"]) == groups()["math"]
    own = {"name": "own", "source": "a/b"}
    listed = tmp_path / "mine.txt"
    listed.write_text("\ufeffaime24\n\n# contests\namc23  # with answers\n")
    assert expanded([own, str(listed), "amc23"]) == [own, "aime24", "amc23"]
    assert expanded([f"file:{listed}"]) == ["aime24", "amc23"]
    listed.write_text("# nothing\n")
    with pytest.raises(UserError, match=r"mine\.txt: names no benchmark"):
        expanded([str(listed)])
    with pytest.raises(UserError, match=r"none\.txt: no readable list"):
        expanded([str(tmp_path / "none.txt")])


def test_decontamination_against_a_group_finds_every_benchmarks_problems(hub, tmp_path):
    words = "if a train leaves the station at noon and walks to the sea how far is it"
    train = [Problem("a", f"Tell me {words} from here", "1"), Problem("b", "What is 1 + 1?", "2")]
    train.append(Problem("c", "Question 2?", "62"))  # of MathArena's stand-ins
    listed = tmp_path / "mine.txt"
    listed.write_text(f"hmmt_feb25\nfile:{tmp_path / 'own.jsonl'}\n")
    (tmp_path / "own.jsonl").write_text(f'{{"problem": "{words}?", "answer": 1}}\n')
    assert [p.id for p in Decontaminate(["math"])(train)] == ["a", "b"]
    assert [p.id for p in Decontaminate([str(listed)])(train)] == ["b"]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(f'{{"problem": "{p.problem}", "answer": 1}}\n' for p in train))
    found = contamination(str(path), ["math", str(listed)])
    assert set(found.sizes) == {*groups()["math"], "own"} and len(found.overlaps) == 2
