"""docs/methods.md and its pictures are those that the configs give, and say what is true."""

import re
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bandpo.loss import (
    BandKL,
    Clip,
    PolicyLoss,
    Radius,
    SequenceMeanTokenSum,
    TokenBatch,
    TokenRatio,
)
from bandpo.methods.method import FAMILIES, Method, load_methods
from bandpo.methods.needs import needs
from bandpo.methods.weight_picture import picture

ROOT = Path(__file__).resolve().parents[2]
NUMBER = re.compile(r"-?\d+\.\d")


@pytest.fixture(scope="module")
def made() -> tuple[str, dict[str, str]]:
    sys.path.insert(0, str(ROOT / "scripts"))
    from document_methods import document

    return document()


def test_the_page_is_in_step_with_the_configs(made):
    assert (ROOT / "docs/methods.md").read_text(encoding="utf-8") == made[0], (
        "run python scripts/document_methods.py"
    )


def test_the_pictures_are_in_step_with_the_configs(made):
    """Another processor may round a pixel's tenth the other way."""
    folder = ROOT / "docs/methods"
    assert {path.name for path in folder.iterdir()} == made[1].keys()
    for name, text in made[1].items():
        drawn = (folder / name).read_text(encoding="utf-8")
        places, expected = ([*map(float, NUMBER.findall(t))] for t in (drawn, text))
        assert places == pytest.approx(expected, abs=0.11), name
        assert NUMBER.sub("", drawn) == NUMBER.sub("", text), name


def test_every_method_has_a_row_with_its_picture_and_its_parts(made):
    page = made[0]
    headings = {heading.lower() for heading in re.findall(r"^### (\w+)$", page, re.MULTILINE)}
    assert set(re.findall(r"\]\(#(\w+)\)", page)) <= headings | {"parts"}
    for method in load_methods("all"):
        (row,) = re.findall(rf"^\| `{method.name}` .*$", page, re.MULTILINE)
        cells = re.split(r"(?<!\\) \| ", row.strip("| "))
        assert len(cells) == 7 and all(cells), method.name
        assert f"methods/{method.name}.svg" in row
    assert [f"## {family[0].upper()}{family[1:]}" in page for family in FAMILIES]
    assert not re.search(r"\bRaises\b|UserError", page)


def test_what_methods_need():
    named = {method.name: needs(method) for method in load_methods("all")}
    assert named["dppo_tv"] == named["sapo"] == named["ce_gppo"] == []
    assert named["grpo"] == ["a reference model"]
    assert named["band_kl_entropy"] == ["a reference model", "the old policy's entropy"]
    assert named["prime_rl"] == ["the engine's log-probabilities"]
    for name in ("gspo", "luspo", "topr", "vespo", "gmpo", "gmpo_band_kl", "off_policy_mask"):
        assert "whole sequences" in named[name]
    (alone,) = load_methods("band_kl:kl_coef=0")
    assert needs(alone) == []


class FollowsPassRate(Radius):
    def __call__(self, batch: TokenBatch) -> Tensor:
        if batch.pass_rate is None:
            raise ValueError("needs TokenBatch.pass_rate")
        return 0.05 + batch.pass_rate


def test_needs_of_a_rule_of_ones_own():
    loss = PolicyLoss(TokenRatio(), Clip(BandKL(FollowsPassRate())), SequenceMeanTokenSum())
    assert needs(Method("own", loss)) == ["the group's pass rate"]


def test_a_picture_shows_the_weight():
    (method,) = load_methods("cispo:eps_high=1.0")  # weights min(r, 2)·A
    curves = re.findall(r'points="([^"]+)"', picture(method))
    places = [[tuple(map(float, p.split(","))) for p in c.split()] for c in curves]
    (up, down) = ([y for _, y in points] for points in places)
    ratios = torch.tensor([0.5, 1.5, 8.0], dtype=torch.float64)
    for advantage in (1.0, -1.0):
        expected = advantage * torch.tensor([0.5, 1.5, 2.0], dtype=torch.float64)
        found = method.weights(ratios, 0.05, advantage, 0.5)
        torch.testing.assert_close(found, expected)
    middle = 50.0
    assert up[-1] == pytest.approx(middle - 46 * 2 / 4) and up[0] < middle
    assert down == pytest.approx([2 * middle - y for y in up], abs=0.11)
