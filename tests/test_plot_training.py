"""The figure of a run shows what it says, from metrics.jsonl alone."""

import json

import pytest

from bandpo.errors import UserError
from bandpo.plots import plot_training
from bandpo.plots.training import _evaluations


def test_it_is_drawn_with_mean_and_pass_of_all_samples_alone(tmp_path):
    evaluation = {f"eval/b/{k}": 0.5 for k in ("mean@4", "pass@2", "pass@4", "best@4")}
    lines = [{"step": 0, **evaluation, "eval/b/length/mean": 30.0}, {"step": 1, "reward/mean": 1.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    assert _evaluations(lines) == ("eval/b/mean@4", "eval/b/pass@4")
    figure = plot_training(tmp_path)
    assert figure == tmp_path / "plots/training.png"
    assert figure.read_bytes().startswith(b"\x89PNG") and figure.stat().st_size > 10_000


def test_a_folder_that_is_no_run_is_told(tmp_path):
    with pytest.raises(UserError, match=r"is .* the folder of a run"):
        plot_training(tmp_path)
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(UserError, match="empty"):
        plot_training(tmp_path)
