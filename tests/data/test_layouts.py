"""Layouts of the field are read as they are; where a column cannot be told, the command is."""

import json

import pytest

from bandpo.cli import main
from bandpo.config.composition import compose
from bandpo.config.identity import config_hash
from bandpo.config.schema import Config
from bandpo.data.benchmarks import load_benchmarks
from bandpo.data.layouts import last_box
from bandpo.data.sources import load_problems
from bandpo.errors import UserError


def user(text):
    return {"role": "user", "content": text}


SYSTEM = {"role": "system", "content": "Be brief."}
# name -> rows of 1+1 and 2+2, as the field's sets have them
LAYOUTS = {
    "plain": [{"problem": "1+1", "answer": 2}, {"problem": "2+2", "answer": "4"}],
    "question and answer": [{"question": "1+1", "answer": 2}, {"question": "2+2", "answer": 4}],
    "GSM8K": [
        {"question": "1+1", "answer": "One and one is <<1+1=2>>2\n#### 2"},
        {"question": "2+2", "answer": "Two and two\n#### 4"},
    ],
    "MATH": [
        {"problem": "1+1", "level": "Level 1", "solution": r"Not \boxed{1}, but \boxed{2}."},
        {"problem": "2+2", "level": "Level 1", "solution": r"So $\boxed{4}$"},
    ],
    "question and solution": [
        {"question": "1+1", "solution": "2"},
        {"question": "2+2", "solution": "4"},
    ],
    "verl": [
        {
            "data_source": "math",
            "prompt": [user(f"{n}+{n}")],
            "reward_model": {"style": "rule", "ground_truth": str(2 * n)},
            "extra_info": {"index": 7, "split": "train"},
        }
        for n in (1, 2)
    ],
    "verl with a solution beside it": [
        {
            "prompt": f"{n}+{n}",
            "solution": "worked out",
            "reward_model": {"ground_truth": str(2 * n)},
        }
        for n in (1, 2)
    ],
    "verl with answers in lists": [
        {"prompt": [SYSTEM, user(f"{n}+{n}")], "reward_model": {"ground_truth": [str(2 * n)]}}
        for n in (1, 2)
    ],
    "Skywork-OR1": [
        {"prompt": [user(f"{n}+{n}")], "reward_model": {"ground_truth": json.dumps([str(2 * n)])}}
        for n in (1, 2)
    ],
    "Open-Reasoner-Zero": [
        [
            {"from": "human", "value": f"{n}+{n}"},
            {"from": "assistant", "ground_truth": {"value": str(2 * n)}},
        ]
        for n in (1, 2)
    ],
    "Open-Reasoner-Zero on the hub": [
        {
            "0": {"from": "human", "value": f"{n}+{n}", "ground_truth": None},
            "1": {"from": "assistant", "value": None, "ground_truth": {"value": str(2 * n)}},
        }
        for n in (1, 2)
    ],
    "OpenR1-Math": [
        {
            "problem": f"{n}+{n}",
            "solution": "worked out",
            "answer": str(2 * n),
            "messages": [user(f"{n}+{n}"), {"role": "assistant", "content": "2"}],
            "generations": ["a", "b"],
            "uuid": str(n),
        }
        for n in (1, 2)
    ],
    "NuminaMath": [
        {
            "source": "amc",
            "problem": f"{n}+{n}",
            "solution": rf"So \boxed{{{2 * n}}}.",
            "messages": [user(f"{n}+{n}"), {"role": "assistant", "content": "so"}],
        }
        for n in (1, 2)
    ],
    "DeepScaleR": [
        {"problem": f"{n}+{n}", "answer": 2 * n, "solution": "worked out"} for n in (1, 2)
    ],
    "DeepMath": [
        {"question": f"{n}+{n}", "final_answer": str(2 * n), "r1_solution_1": "…"} for n in (1, 2)
    ],
    "Big-Math": [
        {"problem": f"{n}+{n}", "answer": str(2 * n), "domain": ["Algebra"], "source": "gsm8k"}
        for n in (1, 2)
    ],
    "ShareGPT and an answer": [
        {"conversations": [{"from": "human", "value": f"{n}+{n}"}], "answer": 2 * n} for n in (1, 2)
    ],
    "prompt and ground_truth": [
        {"prompt": "1+1", "ground_truth": 2},
        {"prompt": "2+2", "ground_truth": 4},
    ],
}


AS_THEY_ARE = ("plain", "OpenR1-Math", "DeepScaleR", "Big-Math")  # problem and answer


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_known_layout_is_read_as_it_is(name, tmp_path, caplog):
    caplog.set_level("INFO", "bandpo")
    problems = load_problems(write(tmp_path / "a.jsonl", LAYOUTS[name]))
    assert [(p.problem, p.answer) for p in problems] == [("1+1", "2"), ("2+2", "4")]
    assert ("a.jsonl: read with data.columns." in caplog.text) == (name not in AS_THEY_ARE)


# name -> rows, and what is to be typed
UNCLEAR = {
    "two questions": (
        [{"question": "1+1", "prompt": "What is 1+1?", "answer": 2}],
        "name the problem with data.columns.problem=question or data.columns.problem=prompt",
    ),
    "two answers": (
        [{"problem": "1+1", "ground_truth": 2, "final_answer": "two"}],
        "name the answer with data.columns.answer=ground_truth or data.columns.answer=final_answer",
    ),
    "none known": (
        [{"frage": "1+1", "answer": 2, "level": 1}],
        "no column 'problem'; name the problem with data.columns.problem=frage or "
        "data.columns.problem=level",
    ),
    "a worked solution without a box": (
        [{"problem": "1+1", "solution": "One and one.\nSo the answer is 2"}],
        r"""data.columns.answer=solution and 'data.columns.answer_pattern="answer is (.+)"'""",
    ),
    "an assistant's turn at the end": (
        [{"prompt": [user("1+1"), {"role": "assistant", "content": "2"}], "answer": 2}],
        "line 1: problem (prompt) ends with a turn of the assistant, where a problem ends with the "
        "user's; data.columns.problem=prompt.0.content takes that turn alone",
    ),
    "several answers": (
        [{"problem": "1+1", "answer": [2, 3]}],
        "line 1: answer (answer) is a list of 2, and a completion is compared with one answer; "
        "data.columns.answer=answer.0 takes the first",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UNCLEAR)
def test_where_a_column_cannot_be_told_the_command_is(name, tmp_path):
    rows, command = UNCLEAR[name]
    with pytest.raises(UserError) as told:
        load_problems(write(tmp_path / "a.jsonl", rows))
    assert command in str(told.value)


def test_the_commands_that_are_shown_work(tmp_path):
    def loaded(name, *overrides):
        words = ["model.path=a/model", f"data.train={path}", *overrides]
        data = compose("train", words, Config).data
        return [(p.problem, p.answer) for p in load_problems(data.train, data.columns.named())]

    for name, overrides in {
        "two questions": ["data.columns.problem=question"],
        "two answers": ["data.columns.answer=ground_truth"],
        "none known": ["data.columns.problem=frage"],
        "a worked solution without a box": [
            "data.columns.answer=solution", 'data.columns.answer_pattern="answer is (.+)"'
        ],
        "an assistant's turn at the end": ["data.columns.problem=prompt.0.content"],
        "several answers": ["data.columns.answer=answer.0"],
    }.items():  # fmt: skip
        path = write(tmp_path / "a.jsonl", UNCLEAR[name][0])
        assert loaded(name, *overrides) == [("1+1", "2")], name


def test_other_spellings_lead_to_it(capsys):
    for wrong in ("columns.problem=question", "data.train.columns.problem=question"):
        assert main(["train", "model.path=a/model", "data.train=my.jsonl", wrong]) == 2
        assert "data.columns.problem=… names it" in capsys.readouterr().err


def test_columns_of_what_has_none(tmp_path):
    with pytest.raises(UserError, match=r"data\.columns\.problem: bandpo\.data.* has no columns"):
        load_problems({"_target_": "bandpo.data.arithmetic.problems"}, {"problem": "question"})


def test_columns_of_a_benchmark_that_is_a_file(tmp_path):
    path = write(tmp_path / "mine.jsonl", [{"frage": "1+1", "answer": "2"}])
    (found, other) = load_benchmarks([str(path), "arithmetic"], None, {"problem": "frage"})
    assert (found.name, found.problems[0].problem) == ("mine", "1+1")
    assert len(other.problems) == 200
    with pytest.raises(UserError, match=r"data\.columns\.problem names a column of benchmarks tha"):
        load_benchmarks(["arithmetic"], None, {"problem": "frage"})


def test_a_configuration_without_the_key_is_the_same_run():
    config = compose("train", [], Config)
    former = config.model_dump(mode="json")
    del former["data"]["columns"]
    assert config_hash(former) == config_hash(config)


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        (r"\boxed{1} and \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\fbox {3}", "3"),
        (r"\boxed{1} then \boxed{2", "1"),
        ("none", None),
    ],
)
def test_the_last_box(text, inside):
    assert last_box(text) == inside
