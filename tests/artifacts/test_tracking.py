"""What a run writes, and what it shows on a terminal and in a log."""

import io
import json
import logging
import sys

import pytest

from bandpo.artifacts.display import Display
from bandpo.artifacts.folder import cut_after
from bandpo.artifacts.tracking import Clock, Tracker
from bandpo.config.sections.trainer import TrackingConfig
from bandpo.errors import UserError
from bandpo.ranks.collectives import Alone
from bandpo.reward import Score
from bandpo.rollout.scoring import GroupSummary, ScoredGroup
from bandpo.types import Completion, Group, Problem, Prompt


def tracker(folder, *trackers, active=True, **settings) -> Tracker:
    tracking = TrackingConfig(trackers=trackers, project="bandpo")
    display = Display(sys.stdout, sys.stderr, active=active)
    return Tracker(folder, tracking, display, active=active, steps=3, name="run", **settings)


def scored(text: str) -> GroupSummary:
    prompt = Prompt(Problem("p", "what?", "1"), "<|user|>what?", (1,))
    completion = Completion(text, (2, 3), (-1.0, -2.0), "length", weight_version=4)
    scores = (Score(0.5, "wrong", "7", 0.1),)
    return ScoredGroup(Group(prompt, (completion,)), scores).summary()


def test_a_log_gets_plain_lines_and_the_file_every_metric(tmp_path, capsys):
    t = tracker(tmp_path, settings={"a": {"b": 1}})
    t.log(1, {"reward/mean": 0.25, "other": 1.0})
    t.close()
    assert capsys.readouterr().out == "step 1/3  reward 0.25\n"
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert line == {"step": 1, "reward/mean": 0.25, "other": 1.0}
    assert (tmp_path / "config.yaml").read_text() == "a:\n  b: 1\n"


SCORES = {
    "eval/amc23/mean@32": 0.4125,
    "eval/amc23/pass@32": 0.71,
    "eval/amc23/pass@16": 0.6,
    "eval/math500/mean@4": 0.5,
    "eval/math500/length/mean": 300.0,
}


def test_every_benchmark_is_named_in_the_line_of_a_step(tmp_path, capsys):
    t = tracker(tmp_path)
    t.log(2, {"reward/mean": 0.25, **SCORES})
    t.close()
    assert capsys.readouterr().out == (
        "step 2/3  reward 0.25  amc23 mean@32 0.4125 pass@32 0.71  math500 mean@4 0.5\n"
    )


@pytest.mark.parametrize(
    ("width", "shown"),
    [
        (
            60,
            "step 2/3  reward 0.25  amc23 mean@32 0.4125 pass@32 0.71\n"
            "          math500 mean@4 0.5\n",
        ),
        (
            80,
            "step 2/3  reward 0.25  amc23 mean@32 0.4125 pass@32 0.71  math500 mean@4 0.5\n",
        ),
    ],
)
def test_a_narrow_terminal_folds_a_line_between_its_entries_and_the_log_does_not(
    width, shown, monkeypatch
):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(width))
    screen, log = io.StringIO(), io.StringIO()
    entries = ["reward 0.25", "amc23 mean@32 0.4125 pass@32 0.71", "math500 mean@4 0.5"]
    Display(screen, screen, log).entries("step 2/3", entries)
    assert screen.getvalue() == shown
    assert log.getvalue() == "  ".join(["step 2/3", *entries]) + "\n"


def test_warnings_of_every_rank_are_shown_once_and_kept(capsys):
    logger = logging.getLogger("bandpo")
    before = list(logger.handlers)
    for active in (True, False):
        stderr, log = io.StringIO(), io.StringIO()
        with Display(sys.stdout, stderr, log, active=active) as display:
            logging.getLogger("bandpo.run").warning("hf_%s", "x" * 30)  # a hub's token
            display.say("said")
        assert stderr.getvalue() == "(hidden)\n"
        assert log.getvalue() == "(hidden)\n" + "said\n" * active
    assert capsys.readouterr().out == "said\n" and logger.handlers == before


def test_other_ranks_write_nothing(tmp_path, capsys):
    t = tracker(tmp_path / "run", active=False)
    t.log(1, {"x": 1.0})
    t.say("hello")
    t.describe(a=1)
    t.log_samples(1, [scored("x")], Alone())
    t.close()
    assert not (tmp_path / "run").exists() and capsys.readouterr().out == ""


def test_steps_after_a_checkpoint_are_cut_and_half_lines_too(tmp_path):
    t = tracker(tmp_path)
    for step in range(4):
        t.log(step, {"x": step})
        t.log_samples(step, [scored("text")], Alone())
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1, "x"')
    cut_after(tmp_path, 1)
    steps = [json.loads(x)["step"] for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == [0, 1]
    names = sorted(p.name for p in (tmp_path / "samples").iterdir())
    assert names == ["step_000000.jsonl", "step_000001.jsonl"]
    t.close()


def test_samples_are_kept_whole_and_shown_as_plain_text(tmp_path, capsys):
    t = tracker(tmp_path)
    t.log_samples(1, [scored("[red]boxed[/red] \x1b[31m \\boxed{7}")], Alone())
    t.close()
    record = json.loads((tmp_path / "samples/step_000001.jsonl").read_text())
    assert record["completion"] == "[red]boxed[/red] \x1b[31m \\boxed{7}"
    assert (record["value"], record["status"], record["weight_version"]) == (0.5, "wrong", 4)
    shown = capsys.readouterr().out
    assert "\x1b[31m" not in shown and "[red]" in shown


def test_an_unknown_tracker_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no tracker 'nonsense'.*wandb"):
        tracker(tmp_path, "nonsense")


def test_the_clock_sums_phases():
    clock = Clock()
    for _ in range(2):
        with clock("learn"):
            pass
    metrics = clock.metrics(tokens=100)
    assert set(metrics) == {"time/learn_s", "time/step_s", "throughput/tokens_per_s"}
    assert metrics["throughput/tokens_per_s"] == pytest.approx(100 / metrics["time/step_s"])


def test_the_record_waits_for_a_full_disk_and_its_end_is_not_lost_silently(
    tmp_path, capsys, at_most
):
    t = tracker(tmp_path)
    t.log(1, {"x": 1.0})
    with at_most(30):
        t.log(2, {"x": 2.0})
        t.log_samples(2, [scored("text")], Alone())
        with pytest.raises(OSError):
            t.flush()
        t.close()
    shown = " ".join(capsys.readouterr().out.split())
    assert "waits in memory" in shown and "is lost" in shown
    t.flush()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
    assert (tmp_path / "samples/step_000002.jsonl").exists()
