"""The study: its numbers from trainings done by hand, its recipe, its files."""

import dataclasses
import json
import math
import statistics

import pytest
import torch
from scipy import stats
from tabular_study import Actions, Adam, Bandit, Setting, Sgd, Study, Sweep, Update, train

from bandpo.errors import UserError
from bandpo.loss import Fixed
from bandpo.methods.method import load_methods
from bandpo.tables.recipe import find_recipe

BANDIT = Bandit(20, [Actions(1, 0.05, 0.2), Actions(4, 0.005, 0.05)])
OTHER = Bandit(20, [Actions(5, 0.01, 0.02)])
SETTING = Setting(BANDIT, Update(Adam(), 2.0, inner=2, group_size=8), seeds=20, rollouts=12)
PHASE = Sweep(
    "Rarity", {"a": BANDIT, "b": OTHER}, {"SGD": Update(Sgd(), inner=2, group_size=8)},
    reaches=[0.5, 1.0, 4.0], methods="all", seeds=20, rollouts=30,
)  # fmt: skip
TURN = dataclasses.replace(PHASE, methods="band_kl:delta=0.1", stop=False, bandits={"a": BANDIT})
STUDY = Study(
    {"one": SETTING}, PHASE, {"radius": TURN}, {"canonical": Fixed(0.2, 0.2)},
    methods="grpo,band_kl", accuracy=0.9, seed=4,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    STUDY.run(folder)
    return folder


@pytest.fixture(scope="module")
def results(folder):
    return json.loads((folder / "results.json").read_text())


def coverage_at(method: str, bandit: Bandit, update: Update, rollouts: int) -> torch.Tensor:
    (loaded,) = load_methods(method)
    return train(bandit, loaded, update, 4, 20, rollouts).at(0.9).coverage


def test_a_setting(results):
    rows = results["settings"]["one"]["methods"]
    assert list(rows) == ["grpo", "band_kl", "canonical"]
    grpo, band = (coverage_at(name, BANDIT, SETTING.update, 12) for name in ("grpo", "band_kl"))
    change = (band - grpo).numpy()
    found = rows["band_kl"]["at_accuracy"]["coverage"]
    assert found["mean"] == pytest.approx(band.mean().item(), rel=1e-3)
    assert found["change"] == pytest.approx(change.mean(), rel=1e-3)
    half = stats.t.ppf(0.975, 19) * change.std(ddof=1) / math.sqrt(20)
    assert found["high"] - found["low"] == pytest.approx(2 * half, rel=1e-3)
    assert found["more"] == pytest.approx((change > 0).mean())
    assert found["change_quantiles"][2] == pytest.approx(statistics.median(change), rel=1e-3)
    # The ablation that is canonical clipping is canonical clipping.
    for when in ("at_accuracy", "last"):
        assert rows["canonical"][when]["coverage"] == rows["grpo"][when]["coverage"]
        assert rows["canonical"][when]["coverage"]["change"] == 0
    above = [rows["band_kl"][f"reach/above_{name}_frac"] for name in ("canonical", "band", "high")]
    assert 1 > above[0] > above[1] == above[2] > 0


def test_a_sweep(results):
    phase = results["phase"]
    assert [curve["bandit"] for curve in phase["curves"]] == ["a", "b"]
    update = Update(Sgd(), 4.0, inner=2, group_size=8)
    grpo, band = (coverage_at(name, OTHER, update, 30) for name in ("grpo", "band_kl"))
    point = phase["curves"][1]["points"][2]["at_accuracy"]["coverage"]
    assert point["change"] == pytest.approx((band - grpo).mean().item(), rel=1e-3)
    assert phase["curves"][0]["incumbent"] == pytest.approx(0.1)
    assert phase["curves"][1]["incumbent"] is None
    (curve,) = results["turns"]["radius"]["curves"]
    turn = curve["turns"]["coverage_at_accuracy"]
    assert turn.keys() == {"mean", "low", "high", "median"}


def test_the_files(folder, results):
    table = (folder / "table.md").read_text()
    change = results["settings"]["one"]["methods"]["band_kl"]["at_accuracy"]["coverage"]["change"]
    assert f"{change:+.2f}" in table or f"{change:+.3f}" in table
    for name in ("settings", "phase", "turns"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert results["command"] == "bandpo table tabular" and results["versions"]["torch"]
    assert results["study"]["settings"]["one"]["update"]["optimizer"]["class"] == "Adam"


def test_smoke_is_small(tmp_path):
    STUDY.run(tmp_path, smoke=True)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["phase"]["reaches"] == [0.5, 4.0]
    assert results["study"]["settings"]["one"]["seeds"] == 8
    assert results["command"].endswith("--smoke")


def test_the_recipe_and_its_results():
    recipe = find_recipe("tabular")
    study = recipe.study()
    assert isinstance(study, Study) and study.phase.methods == "all"
    written = json.loads((recipe.path / "results" / "results.json").read_text())
    assert written["study"] == study.described(), "the results are another recipe's"
    assert written["command"] == "bandpo table tabular" and written["cpu_seconds"] < 600
    assert (recipe.path / "results" / "table.md").read_text().startswith("# Tabular study")


def test_an_impossible_accuracy_is_named():
    with pytest.raises(UserError, match="accuracy=1"):
        dataclasses.replace(STUDY, accuracy=1)
