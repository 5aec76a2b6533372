"""Runs that are stopped, that lose their engine or reward, or whose numbers turn sick."""

import json
from pathlib import Path

import pytest
import yaml
from small_runs import FIXTURES, LOW_BYTES, timeless

SMALL = [
    *("rollout=hf", "trainer.steps=3", "trainer.checkpoint_every=1", "trainer.sample_every=1"),
    *("rollout.prompts_per_step=4", "rollout.group_size=2", "rollout.max_tokens=4"),
    *("learner.updates_per_rollout=2", "eval.benchmarks=[]"),
    *LOW_BYTES,
]
SECRET = "correct-horse-battery"


def overrides_of(folder: Path, model: Path, *own: str) -> list[str]:
    """Those of a small run, but for its own."""
    settings = [*SMALL, "policy=embedded", f"model.path={model}", f"run.dir={folder}", *own]
    return list({setting.split("=")[0]: setting for setting in settings}.values())


def runs_of(folder: Path, model: Path) -> dict[str, list[str]]:
    """Every run by its name; they share a process, as the runs of a series do."""
    alarm = "alarms=[{_target_: bandpo.alarms.Above, metric: ratio/mean, limit: 0.5, action: stop}]"
    own = {
        "quiet": [],
        "stopped": ["trainer.max_hours=1e-6"],
        "continued": [],
        "alarm": [alarm, f"tracking.project={SECRET}"],
        "sick": ["method=sick", "learner.updates_per_rollout=1", "trainer.max_skipped_updates=1"],
        "mortal": ["rollout=mortal", "reward=fails_once"],
        "deadly": ["rollout=mortal", "rollout.engine.deaths=3"],
    }
    folders = {"continued": "stopped"}
    return {
        name: overrides_of(folder / folders.get(name, name), model, *overrides)
        for name, overrides in own.items()
    }


@pytest.fixture(scope="module")
def ended(launch, untrained, tmp_path_factory, pytestconfig):
    """How each run ended, and the folder of them all."""
    folder = tmp_path_factory.mktemp("runs")
    runs = runs_of(folder, untrained())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOME_API_KEY", SECRET)
        results = launch(FIXTURES / "fault_runs.py", 1, *map(json.dumps, runs.values()))
    return dict(zip(runs, results, strict=True)), folder


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").glob("step_*"))


def test_a_run_whose_time_is_up_stops_after_a_step_and_goes_on_from_there(ended):
    results, folder = ended
    assert results["quiet"] == results["stopped"] == results["continued"] == {}
    # After "stopped" the folder held one step; its second part wrote the others.
    assert timeless(folder / "stopped") == timeless(folder / "quiet")
    samples = sorted((folder / "quiet/samples").iterdir())
    assert len(samples) == 3
    for path in samples:
        assert (folder / "stopped/samples" / path.name).read_bytes() == path.read_bytes()


def test_an_alarm_stops_the_run_with_its_metrics_written(ended):
    results, folder = ended
    assert "after step 1 by an alarm: ratio/mean is above 0.5" in results["alarm"]["RunHalted"]
    assert [line["step"] for line in timeless(folder / "alarm")][-1] == 1
    assert not checkpoints(folder / "alarm")


def test_secrets_stay_out_of_the_files_of_a_run(ended):
    _, folder = ended
    settings = yaml.safe_load((folder / "alarm/config.yaml").read_text())
    assert settings["tracking"]["project"] == "(hidden)"
    texts = [p.read_bytes() for p in (folder / "alarm").rglob("*") if p.is_file()]
    assert texts and not any(SECRET.encode() in text for text in texts)


def test_nonfinite_numbers_end_the_run_with_a_bundle_and_the_last_good_checkpoint(ended):
    results, folder = ended
    message = results["sick"]["RunHalted"]
    assert message.startswith(
        "step 3: 1 update(s) in a row were skipped because loss or gradient was nonfinite"
    )
    assert checkpoints(folder / "sick")[-1] == "step_000002"
    assert timeless(folder / "sick")[-1]["learn/skipped"] == 0.0
    bundle = folder / "sick/diagnostics/step_000003"
    assert str(bundle) in message
    samples = [json.loads(x) for x in (bundle / "samples-rank0.jsonl").read_text().splitlines()]
    # Of the four prompts' samples those of one are at fault, and no other is blamed.
    sick = [sample["id"] for sample in samples if sample["sick"]]
    assert len(samples) == 8 and len(sick) == 2
    assert sick[0].rpartition("/")[0] == sick[1].rpartition("/")[0]
    assert {"completion_ids", "rollout_logp", "old_logp", "advantage"} <= samples[0].keys()
    assert all(name in message for name in sick)
    assert json.loads((bundle / "update.json").read_text())["refused"]
    assert len((bundle / "metrics.jsonl").read_text().splitlines()) == 3
    assert (bundle / "config.yaml").read_bytes() == (folder / "sick/config.yaml").read_bytes()
    assert "versions" in json.loads((bundle / "run.json").read_text())


def test_an_engine_and_a_reward_that_die_are_replaced_and_the_run_is_the_same(ended):
    results, folder = ended
    assert results["mortal"] == {}
    assert timeless(folder / "mortal") == timeless(folder / "quiet")


def test_an_engine_that_dies_again_ends_the_run_with_the_cause(ended):
    results, _ = ended
    assert "the engine died a second time" in results["deadly"]["RuntimeError"]
    assert "the device fell off the bus" in results["deadly"]["cause"]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_vllm_that_dies_is_replaced_in_the_same_process(ranks, launch, untrained, tmp_path):
    pytest.importorskip("vllm")
    model = untrained(tied=False)
    eager = ("rollout.engine.enforce_eager=true", "rollout.engine.max_num_seqs=32")
    runs = [
        overrides_of(tmp_path / "mortal", model, "rollout=mortal_vllm"),
        overrides_of(tmp_path / "quiet", model, "rollout=vllm_local", *eager),
    ]
    assert launch(FIXTURES / "fault_runs.py", ranks, *map(json.dumps, runs)) == [{}, {}] * ranks
    assert timeless(tmp_path / "mortal") == timeless(tmp_path / "quiet")
