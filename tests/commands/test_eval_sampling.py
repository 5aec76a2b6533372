"""`bandpo eval`: the model's own sampling where asked for, stops of a run, and what is told."""

import json
import shutil

import pytest
import yaml
from small_runs import few

from bandpo.cli import main
from bandpo.evaluation.inheritance import inheritance
from bandpo.evaluation.summary import read_summaries

FILE = {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "max_new_tokens": 7, "do_sample": True}
BENCHMARK = few(4).removeprefix("eval.")


@pytest.fixture(scope="module")
def model(untrained, tmp_path_factory):
    folder = shutil.copytree(untrained(), tmp_path_factory.mktemp("m") / "model")
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | FILE))
    return folder


@pytest.fixture
def evaluated(model, tmp_path, capsys):
    """Runs an evaluation; what it told, and its settings."""

    def run(*overrides, code=0):
        words = ["rollout=hf", "eval.n=2", "eval.max_tokens=4", "eval.template=none", BENCHMARK]
        words += [f"out={tmp_path / 'out'}", f"model={model}"]
        assert main(["eval", *words, *overrides]) == code
        told = capsys.readouterr()
        text = " ".join((told.out + told.err).split())
        return text, {} if code else read_summaries(tmp_path / "out")["few"].settings

    return run


def test_generation_config_is_not_used_and_a_line_says_so(evaluated):
    told, settings = evaluated()
    assert "generation_config.json has temperature=0.6, top_p=0.95, top_k=20: not used" in told
    assert (settings["temperature"], settings["top_p"], settings["top_k"]) == (1.0, 1.0, 0)
    assert "min_p" not in settings and "stop" not in settings
    _, same = evaluated("eval.stop=[]", "eval.min_p=0")
    assert same == settings


def test_the_models_own_sampling_is_used_where_asked_for_and_printed(evaluated):
    told, settings = evaluated("eval.sampling=model", "eval.top_k=3", "eval.repetition_penalty=1.2")
    assert "from generation_config.json: eval.temperature=0.6, eval.top_p=0.95" in told
    assert "not used of generation_config.json: top_k=20, max_new_tokens=7, do_sample=True" in told
    found = {name: settings[name] for name in ("temperature", "top_p", "top_k", "max_tokens")}
    assert found == {"temperature": 0.6, "top_p": 0.95, "top_k": 3, "max_tokens": 4}
    assert settings["repetition_penalty"] == 1.2


def test_a_model_without_sampling_settings_cannot_give_any(evaluated, untrained):
    told, _ = evaluated("eval.sampling=model", f"model={untrained()}", code=2)
    assert (
        "eval.sampling=model" in told and "has no generation_config.json with temperature" in told
    )


def test_stops_and_penalties_are_settings_of_the_samples(evaluated):
    _, settings = evaluated(r'eval.stop=["\n\nQ", 9]', "eval.presence_penalty=0.5")
    assert settings["stop"] == ["\n\nQ"] and settings["stop_token_ids"] == [9]
    assert settings["presence_penalty"] == 0.5
    told, _ = evaluated("eval.stop=[a]", code=2)
    assert "holds samples of another evaluation" in told and "stop" in told
    told, _ = evaluated("eval.stop=[9999]", code=2)
    assert "eval.stop: the model has tokens 0 to 261, and no completion ends with 9999" in told


@pytest.mark.parametrize(
    ("of_run", "inherited"),
    [
        ({"rollout": {"stop": ["\\n\\nQ", "it's \\", 5]}, "eval": {"stop": None}}, True),
        ({"rollout": {"stop": ["other"]}, "eval": {"stop": ["\\n\\nQ", "it's \\", 5]}}, True),
        ({"rollout": {"stop": ["other"]}, "eval": {"stop": []}}, False),
        ({"rollout": {}, "eval": {}}, False),
    ],
)
def test_stops_of_a_run_are_inherited(tmp_path, of_run, inherited):
    from bandpo.config.composition import compose
    from bandpo.evaluation.eval_config import EvalCommand
    from bandpo.tables.recipe import override_of

    settings = {"data": {}, "learner": {}, "eval": {"min_p": 0.0}} | of_run
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    found = inheritance(str(tmp_path), gpu=False)
    if not inherited:
        assert found is None
        return
    overrides = [override_of(k, v) for k, v in found.besides(["model=m"]).items()]
    config = compose("eval", [*overrides, "model=m"], EvalCommand)
    assert config.eval.stop == ("\\n\\nQ", "it's \\", 5)
    assert config.eval.parameters.stop == ("\n\nQ", "it's \\")
