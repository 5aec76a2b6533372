"""The figure of a run shows what it says, from metrics.jsonl alone."""

import json

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_hex

from bandpo.artifacts import figures as figures_of_a_run
from bandpo.artifacts.figures import _evaluations, phases_of, plot_timeline, plot_training
from bandpo.errors import UserError
from bandpo.evaluation.intervals import Estimate
from bandpo.evaluation.summary import Summary, write_summaries
from bandpo.methods.palette import COLOURS, ink_on


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


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """The figure that a plot of a run draws: two evaluations, the first with intervals."""
    timed = {"time/rollout_s": 2.0, "time/learn_s": 1.0, "time/step_s": 3.5}
    lines = [
        {"step": 0, "eval/toy/mean@4": 0.25},
        {"step": 1, "reward/mean": 0.1, "clip/high_frac": 0.2, "clip/low_frac": 0.1, **timed},
        {"step": 2, "reward/mean": 0.2, "eval/toy/mean@4": 0.5, **timed},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    estimates = {"mean@4": Estimate(0.25, 0.2, 0.35)}
    (tmp_path / "eval/000000").mkdir(parents=True)
    write_summaries(tmp_path / "eval/000000", [Summary("toy", {"n": 4}, estimates, [])])
    figures = []
    monkeypatch.setattr(figures_of_a_run, "_saved", lambda figure, target: figures.append(figure))

    def draw(plot):
        plot(tmp_path)
        return figures[-1]

    return draw


def test_evaluations_have_their_intervals(drawn):
    (container,) = drawn(plot_training).axes[-1].containers
    assert container.get_label() == "toy mean@4"
    (bars,) = container.lines[2]
    ends = [[float(y) for _, y in segment] for segment in bars.get_segments()]
    assert ends == [[0.2, 0.35], [0.5, 0.5]]


@pytest.mark.parametrize("plot", [plot_training, plot_timeline])
def test_steps_are_whole_the_run_is_named_and_colours_can_be_told_apart(plot, drawn, tmp_path):
    (tmp_path / "config.yaml").write_text("run: {name: my-run}\n")
    figure = drawn(plot)
    title = figure.get_suptitle() or figure.axes[0].get_title()
    assert title.startswith("my-run")
    for axes in figure.axes:
        if axes.has_data():
            assert all(float(tick).is_integer() for tick in axes.get_xticks())
    shown = [to_hex(line.get_color()).upper() for axes in figure.axes for line in axes.lines]
    shown += [to_hex(bar.get_facecolor()).upper() for axes in figure.axes for bar in axes.patches]
    assert {COLOURS[0], COLOURS[1]} <= set(shown) <= set(COLOURS)


def test_a_run_without_a_configuration_is_called_like_its_folder(drawn, tmp_path):
    assert drawn(plot_training).get_suptitle() == tmp_path.name


def test_numbers_on_coloured_cells_have_the_contrast_that_pages_must_have():
    """At least 4.5:1 on every shade, by the standard's own definition."""

    def luminance(colour):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    assert ink_on(1, 1, 1) == "black" and ink_on(0, 0.45, 0.7) == "white"
    for name in ("PuOr", "Blues", "Reds", "viridis"):
        for shade in matplotlib.colormaps[name](np.linspace(0, 1, 101))[:, :3]:
            both = sorted((luminance(shade), {"black": 0.0, "white": 1.0}[ink_on(*shade)]))
            assert (both[1] + 0.05) / (both[0] + 0.05) > 4.5


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
