"""`bandpo eval model=<run>` puts problems to the policy as the run did, and says so."""

import pytest
import yaml
from small_runs import few, metrics_of

from bandpo.cli import main
from bandpo.evaluation.inheritance import inheritance
from bandpo.evaluation.summary import read_summaries

BENCHMARK = few(20).removeprefix("eval.")


@pytest.fixture(scope="module")
def run(command, tmp_path_factory):
    """One step of the embedded policy, evaluated before and after."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    small = ["rollout=hf", "trainer.steps=1", "rollout.prompts_per_step=4", "rollout.group_size=2"]
    assert command("train", *small, f"run.dir={folder}", "eval.n=4", few(20)) == 0
    return folder


def evaluated(capsys, model, out, *overrides):
    words = ["rollout=hf", "eval.n=4", BENCHMARK, f"out={out}", *overrides]
    assert main(["eval", f"model={model}", *words]) == 0
    return " ".join(capsys.readouterr().out.split()), read_summaries(out)["few"]


def test_a_run_is_evaluated_as_it_evaluated_itself(run, tmp_path, capsys):
    own = {k: v for k, v in metrics_of(run)[-1].items() if k.startswith("eval/few/")}
    assert own["eval/few/mean@4"] > 0.1
    for place in (run, run / "checkpoints/latest", run / "checkpoints/latest/hf"):
        told, summary = evaluated(capsys, place, tmp_path / place.name)
        found = summary.scalars()
        assert {name: found[name] for name in own} == pytest.approx(own)
        source = place.parent if place.name == "hf" else place
        assert (
            f"from {source}: eval.template=none, eval.max_tokens=64, eval.temperature=1.0, "
            "eval.top_p=1.0, dtype=float32" in told
        )
        assert "!" not in told


def test_what_overrides_it_and_most_answers_cut_off_are_warned_of(run, tmp_path, capsys):
    told, summary = evaluated(
        capsys, run, tmp_path / "out", "eval.template=boxed", "eval.max_tokens=4"
    )
    assert f"from {run}: eval.temperature=1.0, eval.top_p=1.0, dtype=float32" in told
    assert f"! eval.template=boxed, while {run} was trained and evaluated with none: its" in told
    assert f"! eval.max_tokens=4, while {run} was trained and evaluated with 64" in told
    assert summary.settings["max_tokens"] == 4
    assert "! few: 100% of the completions were cut off at eval.max_tokens=4: raise it" in told


def test_a_setting_that_is_restated_is_no_warning(run, tmp_path, capsys):
    told, _ = evaluated(capsys, run, tmp_path / "out", "eval.template=none", "dtype=float32")
    assert f"from {run}: eval.max_tokens=64" in told and "!" not in told


def test_the_release_protocols_prompt_is_inherited(tmp_path):
    settings = {
        "model": {"dtype": "bfloat16"},
        "data": {"template": "answer_line", "max_prompt_tokens": 1024},
        "eval": {"max_tokens": 4096, "temperature": 0.6},
        **{"rollout": {}, "learner": {}},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    found = {"eval.template": "answer_line", "eval.max_tokens": 4096, "eval.temperature": 0.6}
    assert inheritance(str(tmp_path), gpu=False).settings == found
    assert inheritance(str(tmp_path), gpu=True).settings == {**found, "dtype": "bfloat16"}


def test_other_models_inherit_nothing(tmp_path):
    (tmp_path / "config.yaml").write_text("unrelated: true\n")
    for model in ("embedded", "a/model", None, str(tmp_path)):
        assert inheritance(model, gpu=False) is None
