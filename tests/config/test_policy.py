"""The embedded policy's settings apply to it alone; real models begin from others."""

import json
from pathlib import Path

import pytest

from bandpo.cli import main
from bandpo.commands import train
from bandpo.config.composition import compose, compose_seeds
from bandpo.config.identity import changes
from bandpo.config.keys import leaves
from bandpo.config.schema import Config

FORMER = json.loads((Path(__file__).parent / "former_settings.json").read_text())
MODEL = ["model.path=Qwen/Qwen2.5-0.5B-Instruct", "data.train=my.jsonl"]


@pytest.mark.parametrize("overrides", FORMER)
def test_settings_of_shipped_protocols_are_those_of_earlier_versions(overrides):
    found = leaves(compose("train", overrides.split(), Config).model_dump(mode="json"))
    assert {key: found.get(key) for key in FORMER[overrides]} == FORMER[overrides]


@pytest.mark.parametrize(("gpu", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_a_model_begins_from_settings_that_fit_models(gpu, dtype):
    config = compose("train", MODEL, Config, gpu=gpu)
    assert (config.model.dtype, config.model.gradient_checkpointing) == (dtype, None)
    assert (config.learner.lr, config.learner.betas) == (1e-6, (0.9, 0.999))
    assert (config.data.template, config.data.max_prompt_tokens) == ("boxed", 1024)
    assert config.rollout.max_tokens == config.eval.max_tokens == 1024
    assert config.eval.benchmarks == ()
    (same,) = compose_seeds("train", MODEL, Config, [0], gpu=gpu)
    assert same == config


def test_a_protocol_that_names_a_model_lies_over_settings_for_models(tmp_path):
    (tmp_path / "protocol").mkdir()
    text = "# @package _global_\nmodel: {path: a/model}\ndata: {train: my.jsonl}\n"
    (tmp_path / "protocol/mine.yaml").write_text(text)
    found = compose("train", [f"hydra.searchpath=[file://{tmp_path}]", "+protocol=mine"], Config)
    assert (found.model.path, found.learner.lr) == ("a/model", 1e-6)


def test_the_embedded_policys_settings_can_be_asked_for():
    toy = compose("train", [], Config)
    other = compose("train", ["policy=embedded", "model.path=a/model"], Config)
    assert changes(toy, other).determining == ("model.path: embedded → a/model",)


def test_variants_of_the_embedded_policy_keep_its_settings():
    for path in ("embedded", "'embedded:worked_share=0.5'", '"embedded:worked_share=0.5"'):
        assert compose("train", [f"model.path={path}"], Config).learner.lr == 2e-4


# command -> fragments of what it prints
REFUSED = {
    "train data.train=my_problems.jsonl": [
        "data.train=my_problems.jsonl: no model is named",
        "0.25 M parameters",
        "choose model.path=<folder or hub id>",
        "model.path=embedded",
    ],
    "train data=dapo_math": ["data=dapo_math: no model is named"],
    "plan data.train=my_problems.jsonl": ["no model is named"],
    "train model.path=a/model": ["data.train: name the problems to train on: data.train=my.jsonl"],
    "plan ~policy data.train=my.jsonl": ["model.path: name the policy to train: model.path="],
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_is_left_open_is_asked_for(words, capsys):
    assert main(words.split()) == 2
    told = capsys.readouterr().err
    for fragment in REFUSED[words]:
        assert fragment in told


def planned(capsys, *overrides: str) -> str:
    assert main(["plan", *overrides]) == 0
    return " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_the_plan_says_that_it_is_the_embedded_policy(capsys):
    told = planned(capsys)
    assert "no model.path: this trains the embedded policy (0.25 M parameters) on arithm" in told
    for line in (
        "learning rate 0.0002, betas 0.9 and 0.99",
        "prompts template none, at most 64 tokens",
        "completions at most 64 tokens",
        "evaluation arithmetic, 32 samples per problem of at most 64 tokens, every 20",
    ):
        assert line in told
    assert "!" not in told
    assert "no model.path" not in planned(capsys, "model.path=embedded")
    assert "no model.path" not in planned(capsys, "+protocol=small")


def test_training_says_that_it_is_the_embedded_policy(capsys, monkeypatch):
    monkeypatch.setattr(train, "run", lambda config, command: None)
    said = []
    for words in ([], ["model.path=embedded"], MODEL):
        assert main(["train", *words]) == 0
        said.append(capsys.readouterr().out)
    assert said[0].startswith("no model.path: this trains the embedded policy")
    assert said[1:] == ["", ""]


def test_the_plan_doubts_what_looks_wrong(capsys):
    """Known sizes: the hub is not asked."""
    model = ["model.path=Qwen/Qwen2.5-3B-Instruct", "data.train=my.jsonl"]
    told = planned(capsys, *model)
    assert "learning rate 1e-06" in told and "training data my.jsonl" in told
    assert "evaluation none" in told and "! no evaluation" in told
    assert told.count("!") == 1
    told = planned(capsys, *model, "learner.lr=2e-5", "eval.benchmarks=math500")
    assert "! learner.lr=2e-05 is high for 3,086 M parameters: 1e-6 is usual" in told
    assert told.count("!") == 1
    told = planned(capsys, *model, "learner.lr=2e-5", "learner.lora.rank=8")
    assert "learner.lr" not in told
    told = planned(capsys, *model, "rollout.max_tokens=32000")
    assert (
        "! data.max_prompt_tokens=1024 and rollout.max_tokens=32000 make 33024 tokens, more than "
        "the 32768 of the model's context" in told
    )
    told = planned(capsys, *model, "policy=embedded")
    assert "! rollout.max_tokens=64 cuts off most answers" in told


def test_the_plan_names_the_rollout_correction(capsys):
    model = ["model.path=Qwen/Qwen2.5-3B-Instruct", "data.train=my.jsonl", "model.dtype=bfloat16"]
    assert "method band_kl; correction token_tis, since model.dtype=bfloat16" in planned(
        capsys, *model
    )
    assert "correction none" in planned(capsys, *model, "method.correction=none")
    assert "correction" not in planned(capsys)


def test_the_policys_name_is_not_needed_for_a_sweep_of_models():
    for path in ("embedded", "a/model"):
        config = compose("train", [f"model.path={path}", "data=arithmetic"], Config)
        assert config.learner.lr == (2e-4 if path == "embedded" else 1e-6)
