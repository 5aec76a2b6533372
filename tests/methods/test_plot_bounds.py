"""The figures of the bounds show what the operator gives."""

import json
from pathlib import Path

import numpy as np
import pytest

from bandpo.cli import main
from bandpo.commands import plot
from bandpo.methods.bounds_figure import LEAST, curves
from bandpo.methods.method import load_methods


def curve_of(name: str, entropy: float = 0.5):
    (curve,) = curves(load_methods(name), entropy)
    return curve


def test_curves_are_the_closed_forms():
    tv = curve_of("band_tv:delta=0.03:max_ratio=1e9")
    assert tv.p[0] == pytest.approx(LEAST) and tv.p[-1] > 0.999 and (np.diff(tv.p) > 0).all()
    np.testing.assert_allclose(tv.high, np.minimum(1 + 0.03 / tv.p, 1 / tv.p), rtol=1e-6)
    np.testing.assert_allclose(tv.low, np.maximum(1 - 0.03 / tv.p, 0), atol=1e-6)
    kl = curve_of("dppo_kl:delta=0.1")
    inside = kl.p < 0.9
    p, q = kl.p[inside], (kl.high * kl.p)[inside]
    divergence = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    np.testing.assert_allclose(divergence, 0.1, rtol=1e-4)


def test_methods_with_the_same_bounds_share_a_curve():
    labels = [c.label for c in curves(load_methods("grpo,clip_higher,dr_grpo,cfpo,dapo,gspo"), 0.5)]
    assert labels == [
        "grpo, dr_grpo",
        "clip_higher, dapo",
        "cfpo (no clip: pulls back)",
        "gspo (a sequence's ratio)",
    ]


def test_methods_without_bounds_are_not_drawn(capsys):
    labels = [c.label for c in curves(load_methods("sapo,gmpo,vespo,topr"), 0.5)]
    assert labels == ["gmpo (tokens of a sequence's mean)", "topr (a sequence's ratio)"]
    assert main(["plot", "bounds", "--methods", "sapo,vespo"]) == 2
    assert "--methods sapo, vespo: no bounds to draw" in capsys.readouterr().err
    gmpo, topr = (curve_of(name) for name in ("gmpo", "topr"))
    np.testing.assert_allclose(np.log(gmpo.high), 0.4)
    assert (topr.low == 0).all() and (topr.high == 1).all()


def test_a_radius_that_follows_the_entropy_says_at_which_it_is_drawn():
    curve = curve_of("band_kl_entropy", entropy=0.5)
    assert curve.label == "band_kl_entropy at 0.5 nats"
    np.testing.assert_allclose(curve.high, curve_of("band_kl:delta=0.06").high)


def test_the_command_draws_all_methods(tmp_path, capsys):
    for name in ("all.png", "some.pdf"):
        out = ["--methods", "all", "--out", str(tmp_path / "new" / name)]
        assert main(["plot", "bounds", *out]) == 0
        assert name in capsys.readouterr().out
    assert (tmp_path / "new" / "all.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "new" / "some.pdf").read_bytes().startswith(b"%PDF")


def test_six_methods_are_drawn_by_default(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plot, "plot_bounds", lambda methods, *_: drawn.extend(methods))
    assert main(["plot", "bounds", "--out", str(tmp_path / "few.png")]) == 0
    names = [method.name for method in drawn]
    assert names == ["grpo", "clip_higher", "dcpo", "band_kl", "band_tv", "band_chi2"]


def test_the_curves_of_a_run(tmp_path, capsys):
    lines = [{"step": k, "reward/mean": k / 3, "policy/entropy": 1.0} for k in range(3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["plot", "training", str(tmp_path)]) == 0
    assert (tmp_path / "plots" / "training.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["training", "nowhere"], "is nowhere the folder of a run"),
        (["bounds", "--methods", "nonsense"], "nonsense"),
        (["bounds", "--out", "figure.xyz"], "--out figure.xyz: Format 'xyz' is not supported"),
        (["bounds", "--entropy", "-1"], "--entropy -1.0: must not be negative"),
    ],
)
def test_bad_input_is_exit_code_2(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["plot", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not list(Path().iterdir())
