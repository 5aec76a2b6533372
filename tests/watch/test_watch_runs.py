"""The runs of a folder, their states, settings, samples, problems and reports."""

import fcntl
import os
import time

import pytest
import yaml
from watched_runs import HOSTILE, settings, write_lines, write_run

from bandpo.watch import records
from bandpo.watch.api import Api, NotFound, Query
from bandpo.watch.files import opened, shown
from bandpo.watch.log import log_of
from bandpo.watch.runs import Library, run_folders
from bandpo.watch.settings import differences, settings_of, telling


@pytest.fixture
def root(tmp_path):
    """Three runs, two of them deeper, and what is none."""
    write_run(tmp_path / "grpo-0")
    write_run(tmp_path / "table/one/band-0", method="band_kl")
    write_run(tmp_path / "table/one/band-1", method="band_kl", seed=1, steps=2, of=4)
    write_run(tmp_path / "grpo-0/previous/1", steps=1)
    (tmp_path / "grpo-0/checkpoints/step_000004").mkdir(parents=True)
    (tmp_path / "grpo-0/checkpoints/step_000004/config.yaml").write_text("{}")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden/metrics.jsonl").write_text("")
    (tmp_path / "empty").mkdir()
    return tmp_path


def overview(root, **changes):
    return {run["id"]: run for run in Library(root, **changes).overview()}


def test_runs_are_found_at_any_depth_but_not_in_each_other(root):
    assert set(run_folders(root)) == {"grpo-0", "table/one/band-0", "table/one/band-1"}
    assert set(run_folders(root / "grpo-0")) == {"grpo-0"}
    assert run_folders(root / "empty") == {}


def test_links_are_not_followed(root, tmp_path_factory):
    outside = write_run(tmp_path_factory.mktemp("outside") / "secret")
    (root / "linked").symlink_to(outside)
    assert "linked" not in run_folders(root)
    for name in ("metrics.jsonl", "samples"):
        inside = root / "grpo-0" / name
        inside.rename(inside.with_name(f"former-{name}"))
        inside.symlink_to(outside / name)
    api = Api(Library(root))
    curves = api.answer("curves", Query({"run": ["grpo-0"], "metric": ["reward/mean"]}))
    assert curves["names"] == []
    with pytest.raises(NotFound):
        api.answer("samples", Query({"run": ["grpo-0"], "step": ["2"]}))
    assert records.sources(root / "grpo-0")[0]["of"] == "toy"  # of its own evaluations alone


def test_only_regular_files_below_the_folder_are_opened(root):
    os.mkfifo(root / "pipe")
    for names in (("pipe",), ("..", "x"), ("grpo-0/metrics.jsonl",), ("a\0",), ("",), ("empty",)):
        with pytest.raises(OSError), opened(root, *names):
            pass
    with opened(root, "grpo-0", "metrics.jsonl") as file:
        assert file.readline().startswith(b'{"step": 0')


def test_a_run_has_its_numbers_and_state(root):
    runs = overview(root, clock=lambda: time.time() + 1000)
    whole, part = runs["table/one/band-0"], runs["table/one/band-1"]
    assert (whole["name"], whole["method"], whole["seed"]) == ("band-0", "band_kl", "0")
    assert (whole["step"], whole["steps"], whole["reward"]) == (4, 4, 0.4)
    assert (whole["accuracy"], whole["benchmark"]) == (0.5, "toy/mean@4")
    assert (whole["state"], part["state"]) == ("finished", "stopped")
    assert overview(root)["table/one/band-1"]["state"] == "running"  # it has just written


def test_a_run_that_is_locked_runs_and_looking_does_not_disturb_its_lock(root):
    lock = root / "table/one/band-1/lock"
    later = {"clock": lambda: time.time() + 1000}
    with lock.open("w") as file:
        assert overview(root, **later)["table/one/band-1"]["state"] == "stopped"
        fcntl.flock(file, fcntl.LOCK_EX)
        assert overview(root, **later)["table/one/band-1"]["state"] == "running"
        much_later = {"clock": lambda: time.time() + 10_000}
        assert overview(root, **much_later)["table/one/band-1"]["state"] == "stalled"


def test_a_run_that_has_not_begun_waits(root):
    (root / "empty/config.yaml").write_text(yaml.safe_dump(settings("new")))
    new = overview(root, clock=lambda: time.time() + 1000)["empty"]
    assert (new["state"], new["step"], new["reward"]) == ("waiting", None, None)


def test_nonfinite_numbers_are_named(root):
    write_lines(root / "grpo-0/metrics.jsonl", [{"step": 1, "reward/mean": float("nan")}])
    assert overview(root)["grpo-0"]["reward"] == "NaN"


def test_a_damaged_configuration_is_none(root):
    for text in ("a: [", "- 1", "!!python/object:os.system {}", "\0", "x: &a [*a]"):
        (root / "grpo-0/config.yaml").write_text(text)
        assert settings_of(root / "grpo-0").keys() <= {"x"}
        assert overview(root)["grpo-0"]["name"] == "grpo-0"


def test_secrets_of_a_configuration_are_hidden(root):
    assert settings_of(root / "grpo-0")["learner.api_key"] == "(hidden)"


def test_memory_has_an_end(root, monkeypatch):
    monkeypatch.setattr("bandpo.watch.runs.MOST_BYTES", 300)
    library = Library(root)
    for id in library.folders():
        assert library.metrics(id, lambda m: len(m.steps)) > 0
    assert list(library._metrics) == ["table/one/band-1"]
    assert library.metrics("grpo-0", lambda m: len(m.steps)) == 5  # read again


def test_a_run_that_is_deleted_meanwhile_is_left_out(root, monkeypatch):
    monkeypatch.setattr("bandpo.watch.runs.RESCAN_S", 0.0)
    library = Library(root)
    query = Query({"run": ["grpo-0", "table/one/band-0"], "metric": ["reward/mean"]})
    assert len(Api(library).answer("curves", query)["runs"]) == 2
    (root / "grpo-0").rename(root.parent / f"{root.name}-away")
    assert set(Api(library).answer("curves", query)["runs"]) == {"table/one/band-0"}
    with pytest.raises(NotFound):
        Api(library).answer("log", Query({"run": ["grpo-0"]}))


def test_runs_are_told_apart_by_few_settings():
    one = {"method.name": "grpo", "method.loss.high": 1.2, "seed": 0, "run.name": "a", "x": None}
    other = {**one, "method.name": "dapo", "method.loss.high": 1.28, "run.name": "b"}
    third = {**other, "seed": 1, "run.name": "c"}
    rows = differences([one, other, third])
    assert rows == {
        "method.name": ["grpo", "dapo", "dapo"],
        "seed": ["0", "0", "1"],
        "method.loss.high": ["1.2", "1.28", "1.28"],
    }
    assert telling(rows) == ["method.name", "seed"]
    assert differences([one, one]) == {} and telling({}) == []
    assert differences([one, {**one, "new": None}]) == {"new": [None, "null"]}


def test_samples_have_scores_and_are_chosen_by_them(root):
    folder = root / "grpo-0"
    every = records.samples(folder, "train", 2, records.Choice())
    count = len(HOSTILE) + 2
    assert every["found"] == every["total"] == count
    assert every["verdicts"]["wrong"] + every["verdicts"]["correct"] == count
    right = records.samples(folder, "train", 2, records.Choice(verdict="correct", least=0.5))
    assert {s["reward"] for s in right["samples"]} == {1.0}
    assert right["samples"][0]["extracted"] == "2" and right["samples"][0]["answer"] == "2"
    longest = records.samples(folder, "train", 2, records.Choice(order="longest"))["samples"]
    assert [s["tokens"] for s in longest] == sorted((s["tokens"] for s in longest), reverse=True)
    found = records.samples(folder, "train", 2, records.Choice(query="THE end", problem="p5"))
    assert [s["problem_id"] for s in found["samples"]] == ["p5"]
    evaluated = records.samples(folder, "toy", 2, records.Choice())["samples"]
    assert [(s["verdict"], s["reward"]) for s in evaluated] == [("correct", 1.0)]


def test_long_texts_are_cut_until_the_whole_is_asked_for(root):
    choice = records.Choice(query="the end")
    (cut,) = records.samples(root / "grpo-0", "train", 2, choice)["samples"]
    assert cut["cut"] and len(cut["completion"]) < 21_000 and "characters" in cut["completion"]
    whole = records.sample(root / "grpo-0", "train", 2, cut["line"])
    assert not whole["cut"] and whole["completion"] == HOSTILE["long"]


def test_characters_that_are_not_seen_are_named():
    assert shown("a\0b\u202ec\td\n\x1b") == "a‹U+0000›b‹U+202E›c\td\n‹U+001B›"
    assert shown(None) == "" and shown("x" * 30, 10) == "xxxxx\n… 20 characters …\nxxxxx"


def test_problems_are_sorted_by_pass_rate(root):
    folder = root / "grpo-0"
    found = records.problems(folder, "train")
    assert [p["rate"] for p in found["problems"]] == [0.0, 0.5, 1.0]
    assert found["problems"][0]["rates"] == (0.75, 0.25, 0.0)
    assert (found["never"], found["always"], found["total"]) == (1, 1, 3)
    assert sum(found["histogram"]) == 3
    lost = records.problems(folder, "train", sort="lost", query="P2")["problems"]
    assert [(p["id"], p["change"]) for p in lost] == [("<b>p2</b>", -0.75)]
    (evaluated,) = records.problems(folder, "toy")["problems"]
    assert evaluated["rates"] == (0.25, 0.75) and evaluated["answer"] == "42"


def test_the_log_reports_alarms_and_faults(root):
    found = log_of(root / "grpo-0")
    assert [r["severe"] for r in found["reports"]] == [False, True]
    assert "alarm: policy/entropy" in found["reports"][0]["text"]
    assert found["lines"][-1] == "Traceback (most recent call last):"
    assert log_of(root / "empty") == {"lines": [], "reports": [], "diagnostics": []}
