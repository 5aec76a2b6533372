"""The figure of a run shows what it says, from metrics.jsonl alone."""

import json

import pytest

from bandpo.artifacts.figures import _evaluations, phases_of, plot_timeline, plot_training
from bandpo.errors import UserError


def test_it_is_drawn_with_mean_and_pass_of_all_samples_alone(tmp_path):
    evaluation = {f"eval/b/{k}": 0.5 for k in ("mean@4", "pass@2", "pass@4", "best@4")}
    lines = [{"step": 0, **evaluation, "eval/b/length/mean": 30.0}, {"step": 1, "reward/mean": 1.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    assert _evaluations(lines) == ("eval/b/mean@4", "eval/b/pass@4")
    figure = plot_training(tmp_path)
    assert figure == tmp_path / "plots/training.png"
    assert figure.read_bytes().startswith(b"\x89PNG") and figure.stat().st_size > 10_000


def test_the_timeline_accounts_for_the_whole_step(tmp_path):
    timed = {"time/learn_s": 3.0, "time/rollout_s": 2.0, "time/late_s": 0.5, "time/step_s": 6.0}
    lines = [{"step": 0}, {"step": 1, **timed}, {"step": 2, "time/step_s": 1.0}]
    assert phases_of(lines) == {
        "rollout": [2.0, 0.0],
        "learn": [3.0, 0.0],
        "late": [0.5, 0.0],
        "other": [0.5, 1.0],
    }
    lines[1]["rollout/overlap_s"] = 1.5
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    figure = plot_timeline(tmp_path)
    assert figure == tmp_path / "plots/timeline.png"
    assert figure.read_bytes().startswith(b"\x89PNG") and figure.stat().st_size > 10_000


def test_a_folder_that_is_no_run_is_told(tmp_path):
    with pytest.raises(UserError, match=r"is .* the folder of a run"):
        plot_training(tmp_path)
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(UserError, match="empty"):
        plot_training(tmp_path)


def test_a_run_without_a_finished_step_has_no_timeline(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "eval/b/mean@4": 0.5}\n')
    with pytest.raises(UserError, match="has no finished step"):
        plot_timeline(tmp_path)
