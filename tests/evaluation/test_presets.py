"""Presets: complete, readable, replaced by arguments alone, and named with every deviation."""

import sys
from pathlib import Path

import pytest
import yaml

from bandpo.config.composition import compose
from bandpo.data.prompts import prompt_template
from bandpo.errors import UserError
from bandpo.evaluation.eval_config import EvalCommand, EvalSection
from bandpo.evaluation.inheritance import inheritance
from bandpo.evaluation.presets import preset_names, read_preset, with_preset
from bandpo.types import Problem

ROOT = Path(__file__).resolve().parents[2]
MODEL = "model=embedded"
# Facts of the named sources.
SAMPLING = {
    "paper": (1.0, 1.0, 0, 32, 4096),
    "r1": (0.6, 0.95, 0, 64, 32768),
    "qwen3-thinking": (0.6, 0.95, 20, 64, 38912),
    "qwen3": (0.7, 0.8, 20, 64, 32768),
    "greedy": (0.0, 1.0, 0, 1, 32768),
    "lighteval": (0.6, 0.95, 0, 1, 32768),
}


def composed(*words):
    return compose("eval", with_preset([MODEL, *words]), EvalCommand).eval


def test_the_presets_are_these():
    assert set(preset_names()) == set(SAMPLING)


@pytest.mark.parametrize("name", SAMPLING)
def test_a_preset_sets_everything_that_it_stands_for(name):
    found = composed(f"eval.preset={name}")
    sampling = found.parameters
    got = (sampling.temperature, sampling.top_p, sampling.top_k, sampling.n, sampling.max_tokens)
    assert got == SAMPLING[name] and found.preset == name
    preset = read_preset(name)
    assert preset.source and preset.eval.keys() <= EvalSection.model_fields.keys()
    assert preset.deviations(found) == []
    for template in (found.template, found.choice_template):
        assert "Q?" in prompt_template(template).render(Problem("a", "Q?", "1"))
        assert prompt_template(template).name == template  # no path of this machine


def test_arguments_replace_settings_wherever_they_stand():
    found = composed("eval.n=8", "eval.preset=r1", "eval.temperature=1.0", "eval.limit=3")
    assert (found.n, found.temperature, found.top_p, found.max_tokens) == (8, 1.0, 0.95, 32768)
    assert read_preset("r1").deviations(found) == [
        "eval.n=8 instead of 64",
        "eval.temperature=1.0 instead of 0.6",
        "eval.limit=3 instead of all problems",
    ]


def test_what_a_preset_does_not_name_is_its_default():
    asked = ["eval.system_prompt=Be brief.", "eval.stop=[x]", "eval.repetition_penalty=1.1"]
    found = composed("eval.preset=qwen3", *asked, "+eval.chat_template_kwargs.tone=dry")
    assert (found.parameters.min_p, found.presence_penalty) == (0.0, 1.5)
    assert found.chat_template_kwargs == {"enable_thinking": False, "tone": "dry"}
    assert read_preset("qwen3").deviations(found) == [
        "eval.system_prompt=Be brief. instead of null",
        "eval.chat_template_kwargs={enable_thinking:false,tone:dry} instead of "
        "{enable_thinking:false}",
        "eval.stop=[x] instead of []",
        "eval.repetition_penalty=1.1 instead of 1.0",
    ]


def test_without_a_preset_nothing_changes():
    assert with_preset(["model=a", "eval.n=2"]) == ["model=a", "eval.n=2"]
    assert with_preset(["eval.preset=null"]) == ["eval.preset=null"]
    assert with_preset(["--help"]) == ["--help"]


def test_a_runs_own_settings_do_not_replace_a_presets(tmp_path):
    own = {"temperature": 1.0, "top_p": 1.0, "max_tokens": 64}
    run = {"data": {"template": "none"}, "eval": own, "rollout": {}, "learner": {}}
    run["model"] = {"dtype": "float32"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(run))
    inherited = inheritance(str(tmp_path), gpu=False)
    assert inherited.besides(["eval.n=4"]).keys() > {"eval.template", "eval.max_tokens"}
    assert inherited.besides(with_preset(["eval.preset=r1"])) == {"dtype": "float32"}


def test_an_unknown_preset_is_named_with_the_others():
    with pytest.raises(UserError, match=r"eval\.preset=r2: no such preset.*qwen3-thinking, r1"):
        with_preset(["eval.preset=r2"])


def test_prompts_are_the_sources_own_sentences():
    r1 = prompt_template("step_by_step").render(Problem("a", "Q?", "1"))
    assert r1 == "Q?\nPlease reason step by step, and put your final answer within \\boxed{}."
    lighteval = prompt_template("lighteval").text
    assert lighteval.startswith("Solve the following math problem efficiently and clearly.  The")
    assert r"is: $\boxed{ANSWER}$. I hope it is correct'" in lighteval
    dapo = prompt_template("dapo").text
    assert dapo.endswith('\n\nRemember to put your answer on its own line after "Answer:".')


def test_the_pages_tables_are_in_step_with_the_files():
    sys.path.insert(0, str(ROOT / "scripts"))
    from document_evaluation import PAGE, document

    text = PAGE.read_text(encoding="utf-8")
    assert document(text) == text and "| `aime26` | `MathArena/aime_2026` train | 30 |" in text
