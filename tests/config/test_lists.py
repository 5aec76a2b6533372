"""A single item is a list of one wherever a list of texts or mappings is wanted."""

import pytest

from bandpo.config.composition import compose
from bandpo.config.schema import Config
from bandpo.config.sections.trainer import EvalConfig
from bandpo.errors import UserError
from bandpo.evaluation.eval_config import EvalCommand
from bandpo.tables.recipe import Smoke


@pytest.mark.parametrize(
    ("override", "section", "key", "expected"),
    [
        ("tracking.trackers=wandb", "tracking", "trackers", ("wandb",)),
        ("eval.benchmarks=amc23", "eval", "benchmarks", ("amc23",)),
        ("tracking.trackers=[wandb,tensorboard]", "tracking", "trackers", ("wandb", "tensorboard")),
    ],
)
def test_an_item_is_a_list_of_one(override, section, key, expected):
    found = getattr(getattr(compose("train", [override], Config), section), key)
    assert found == expected


def test_a_layer_is_a_list_of_one_and_all_linear_is_none():
    for given, found in (("q_proj", ("q_proj",)), ("all-linear", "all-linear")):
        config = compose("train", [f"learner.lora.targets={given}"], Config)
        assert config.learner.lora.targets == found


def test_it_holds_for_every_schema():
    assert compose("eval", ["model=x", "benchmarks=amc23"], EvalCommand).benchmarks == ("amc23",)
    own = {"name": "own", "source": "a.jsonl"}
    assert EvalConfig(benchmarks=own, max_tokens=1).benchmarks == (own,)
    assert Smoke.model_validate({"methods": "grpo", "seeds": "2"}) == Smoke(
        methods=("grpo",), seeds=2
    )


def test_several_items_without_brackets_are_shown_with_them():
    with pytest.raises(UserError) as caught:
        compose("train", ["eval.benchmarks=amc23,aime24"], Config)
    assert "a list needs brackets (eval.benchmarks=[amc23,aime24])" in str(caught.value)
