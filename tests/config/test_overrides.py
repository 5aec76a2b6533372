"""A value that hydra reads as syntax: the message shows the command in which it is text."""

import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from bandpo import cli
from bandpo.config.composition import compose
from bandpo.config.overrides import as_text, is_understood, meant, replaced
from bandpo.config.schema import Config
from bandpo.errors import UserError

AWKWARD = [
    *("/d/lr=1e-6/step=3", "/d/[a]/hf", "[a]/hf", "a{b}c", "a(b)", "a#b", "é 数", "~/x", "a;b"),
    *("it's", 'a"b', '"', "'a", "a\\", 'a\\"b', "a\\\\", "a&b|c", "a!b<c>", "a,b", "a:b", "5"),
    *("embedded:worked_share=0.9,openings=0.1/0.05", "  a = b  ", "a\tb=c", "[", "}", "", "="),
]


@pytest.mark.parametrize("value", AWKWARD)
def test_a_quoted_value_is_the_text_itself(value):
    override = OverridesParser.create().parse_override(as_text(f"model.path={value}"))
    assert (override.key_or_group, str(override.value())) == ("model.path", value)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("a=[x=1,y]", 'a=["x=1",y]'),
        ("a=[ file:/d/x=1.jsonl , amc23]", 'a=[ "file:/d/x=1.jsonl" , amc23]'),
        ("a={path: /d/x=1 (2).csv, bad_rows: drop}", 'a={path: "/d/x=1 (2).csv", bad_rows: drop}'),
        ("a=[{path: b=c},{hub: d/e, columns: {id: f#g}}]",
         'a=[{path: "b=c"},{hub: d/e, columns: {id: "f#g"}}]'),
        ("a=[b]c=d", 'a="[b]c=d"'),
        ("no_value", None),
    ],
)  # fmt: skip
def test_what_hydra_does_not_understand_and_what_it_means(override, expected):
    assert not is_understood(override)
    assert meant(override) == expected
    assert expected is None or is_understood(expected)


PATHS = [path for path in AWKWARD if path.strip() and not is_understood(f"model.path={path}")]


@pytest.mark.parametrize("command", ["plan", "train", "data build", "eval"])
@pytest.mark.parametrize("path", PATHS[:2])
def test_the_message_ends_with_the_command_that_means_it(command, path, capsys):
    key = "model" if command == "eval" else "model.path"
    words = [*command.split(), f"{key}={path}", "rollout=hf"]
    assert cli.main(words) == 2
    told = capsys.readouterr().err
    assert "Traceback" not in told and "in quotes" in told
    line = told.splitlines()[-1]
    assert line.startswith("Quoted: bandpo ")
    corrected = shlex.split(line.removeprefix("Quoted: bandpo "))
    assert corrected == [as_text(word) if path in word else word for word in words]


@pytest.mark.parametrize("path", PATHS)
def test_the_command_that_is_shown_composes_with_that_very_value(path):
    with pytest.raises(UserError, match="hydra reads syntax in it") as told:
        compose("train", ["seed=3", "policy=embedded", f"model.path={path}"], Config)
    (text,) = told.value.instead.values()
    assert shlex.quote(text) in str(told.value)
    config = compose("train", ["seed=3", "policy=embedded", text], Config)
    assert (config.seed, config.model.path) == (3, path)


def test_the_other_problems_are_told_too():
    with pytest.raises(UserError) as told:
        compose(
            "train", ["model.path=a=b", "run.dir=c(d)", "learner.lr=-1", "learner.mu=1"], Config
        )
    for fragment in ("'model.path=\"a=b\"'", "'run.dir=\"c(d)\"'", "learner.lr=-1", "learner.mu"):
        assert fragment in str(told.value)
    assert len(told.value.instead) == 2


@pytest.mark.parametrize(
    ("override", "text"),
    [("run.name=5", 'run.name="5"'), ("model.path=[a]", 'model.path="[a]"'),
     ("run.dir=true", 'run.dir="true"'), ("run.dir=a,b", 'run.dir="a,b"'),
     ("data.template=null", 'data.template="null"')],
)  # fmt: skip
def test_text_that_hydra_takes_for_another_type_can_be_quoted(override, text):
    with pytest.raises(UserError) as told:
        compose("train", ["policy=embedded", override], Config)
    assert shlex.quote(text) in str(told.value)
    compose("train", ["policy=embedded", text], Config)


def test_a_sweep_says_the_same(capsys):
    assert cli.main(["train", "-m", "seed=1,2", "model.path=a=b"]) == 2
    assert capsys.readouterr().err.endswith(
        "Quoted: bandpo train -m seed=1,2 'model.path=\"a=b\"'\n"
    )


def test_a_mapping_for_the_training_data_takes_the_place_of_the_default_one():
    columns = "{problem: prompt.0.content, answer: reward_model.ground_truth}"
    given = f"data.train={{path: my.parquet, columns: {columns}}}"
    model = "model.path=a/model"
    assert compose("train", [model, given], Config).data.train == {
        "path": "my.parquet",
        "columns": {"problem": "prompt.0.content", "answer": "reward_model.ground_truth"},
    }
    other = compose("train", [model, "data=dapo_math", given], Config)
    assert other.data.train["path"] == "my.parquet"
    dropped = compose("train", [model, given, "+data.train.bad_rows=drop"], Config)
    assert dropped.data.train["bad_rows"]
    assert replaced("data.train.count=3") == ["data.train.count=3"]
    assert compose("train", [model, "data.train=my.jsonl"], Config).data.train == "my.jsonl"
