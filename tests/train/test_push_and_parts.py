"""Whole runs that push their policy to a hub, and learn from the parts of a reward by GDPO."""

import shlex

import hub_server
import pytest
from huggingface_hub import constants
from small_runs import CONFIGS, metrics_of

SMALL = [
    *("rollout=hf", "trainer.steps=2", "rollout.prompts_per_step=2", "rollout.group_size=4"),
    *("rollout.max_tokens=6", "learner.updates_per_rollout=1", "eval.benchmarks=[]"),
    *("trainer.checkpoint_every=1", "trainer.sample_every=1", "policy=embedded", CONFIGS),
    *("reward=two_parts", "+method/advantage=gdpo", "run.dir=run"),
]
PARTS = {f"reward/{n}/{m}" for n in ("low", "distinct") for m in ("mean", "std", "share")}


@pytest.fixture
def hub(monkeypatch):
    with hub_server.served() as hub:
        for name, value in (("ENDPOINT", hub.endpoint), ("HF_HUB_DISABLE_XET", True)):
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", hub_server.TOKEN)
        yield hub


@pytest.fixture
def train(command, untrained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *overrides: command(
        "train", *SMALL, f"model.path={untrained()}", "run.push_to_hub=me/mine", *overrides
    )


def exported(run):
    folder = (run / "checkpoints/latest/hf").resolve()
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_run_pushes_its_policy_and_a_failed_push_costs_nothing(hub, train, tmp_path, capsys):
    hub.refuses["/api/models/me/mine/commit"] = 503
    assert train() == 0
    told = capsys.readouterr().out
    assert "after the last step hf/ is pushed to me/mine (private), as me" in told
    assert "step 2 was not pushed to me/mine: " in told and "Nothing is lost" in told
    (line,) = [line for line in told.splitlines() if line.startswith("  hf upload")]
    assert shlex.split(line)[:4] == [
        "hf",
        "upload",
        "me/mine",
        str(tmp_path / "run/checkpoints/step_000002/hf"),
    ]
    assert hub.commits == [] and metrics_of(tmp_path / "run")[-1].keys() >= PARTS

    hub.refuses.clear()
    assert train() == 0  # the finished run, started again
    assert hub.files("me/mine") == exported(tmp_path / "run")
    assert {"README.md", "config.json", "model.safetensors"} <= hub.files("me/mine").keys()
    assert f"pushed step 2: {hub.endpoint}/me/mine/commit/" in capsys.readouterr().out


def test_a_run_that_could_not_push_ends_before_anything_is_loaded(
    hub, train, tmp_path, capsys, monkeypatch
):
    def loads(*arguments, **settings):
        raise AssertionError("nothing is to be loaded")

    monkeypatch.setattr("bandpo.run.job.DeepSpeedLearner", loads)
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 30)
    assert train() == 2
    told = capsys.readouterr().err
    assert "run.push_to_hub=me/mine" in told and "Traceback" not in told
    assert "x" * 30 not in told and not (tmp_path / "run/metrics.jsonl").exists()


def test_an_adapter_is_pushed_merged(hub, train, tmp_path):
    pytest.importorskip("peft")
    assert train("learner.lora.rank=2") == 0
    assert (tmp_path / "run/checkpoints/latest/adapter/adapter_model.safetensors").exists()
    assert hub.files("me/mine") == exported(tmp_path / "run")
    assert "adapter_config.json" not in hub.files("me/mine")


def test_two_ranks_learn_the_same_from_the_parts_and_the_first_pushes(
    bandpo, train, untrained, tmp_path
):
    assert train("run.dir=one", "run.push_to_hub=null") == 0
    with hub_server.served() as hub:
        settings = [*SMALL, f"model.path={untrained()}", "run.push_to_hub=me/mine"]
        done = bandpo("train", *settings, ranks=2, cwd=tmp_path, **hub_server.environment(hub))
    assert done.stdout.count("pushed step 2: ") == 1 and len(hub.commits) == 1
    assert hub.files("me/mine") == exported(tmp_path / "run")
    one, two = (metrics_of(tmp_path / run)[1] for run in ("one", "run"))
    assert one.keys() >= PARTS
    for name in PARTS:
        assert one[name] == pytest.approx(two[name], abs=1e-6), name
    assert one["grad/norm"] == pytest.approx(two["grad/norm"], rel=1e-3)
