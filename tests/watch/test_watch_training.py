"""A run that is watched is the run that it would have been."""

import threading

import pytest
from small_runs import LOW_BYTES, few, metrics_of, timeless

from bandpo.watch.api import Api, NotFound, Query
from bandpo.watch.runs import Library

SETTINGS = [
    *("policy=embedded", "rollout=hf", "method=grpo", "trainer.steps=3", "trainer.sample_every=1"),
    *("rollout.prompts_per_step=2", "rollout.group_size=2", "rollout.max_tokens=8", "eval.n=2"),
    "learner.updates_per_rollout=1",
    *("trainer.checkpoint_every=2", few(2)),
    *LOW_BYTES,
]
QUESTIONS = ("curves", "clipping", "settings", "log", "sources", "samples", "problems")


@pytest.mark.slow
def test_watching_changes_nothing_and_shows_every_step(command, tmp_path, monkeypatch):
    # The run may be over before its folder would be found at the usual rhythm.
    monkeypatch.setattr("bandpo.watch.runs.RESCAN_S", 0.0)
    assert command("train", *SETTINGS, f"run.dir={tmp_path / 'alone'}") == 0
    ended = threading.Event()
    seen, states = set(), set()

    def watch():
        api = Api(Library(tmp_path / "watched"))
        query = Query({"run": ["watched"], "metric": ["reward/mean"], "step": ["1"]})
        while not ended.wait(0.02):
            states.update(run["state"] for run in api.answer("runs", Query({}))["runs"])
            for question in QUESTIONS:
                try:
                    answer = api.answer(question, query)
                except NotFound:  # not there yet
                    continue
                if question == "curves":
                    seen.update(
                        answer["runs"].get("watched", {}).get("reward/mean", {"x": []})["x"]
                    )

    (tmp_path / "watched").mkdir()
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        assert command("train", *SETTINGS, f"run.dir={tmp_path / 'watched'}") == 0
    finally:
        ended.set()
        watcher.join()
    assert timeless(tmp_path / "watched") == timeless(tmp_path / "alone")
    assert seen == {1, 2, 3} and "running" in states
    files = [{p.relative_to(f) for p in f.rglob("*")} for f in tmp_path.iterdir()]
    assert files[0] == files[1]
    api = Api(Library(tmp_path / "watched"))
    (run,) = api.answer("runs", Query({}))["runs"]
    last = metrics_of(tmp_path / "watched")[-1]
    assert (run["step"], run["reward"]) == (3, last["reward/mean"])
    assert (run["state"], run["entropy"]) == ("finished", last["policy/entropy"])
    samples = api.answer("samples", Query({"run": ["watched"], "step": ["3"]}))
    assert samples["total"] == 4
    assert api.answer("problems", Query({"run": ["watched"], "of": ["few"]}))["total"] == 2
    assert len(api.answer("clipping", Query({"run": ["watched"]}))["watched"]) >= 8
