"""`bandpo explain`: one token under every method, against formulas written out here."""

import math
import re

import pytest

from bandpo.cli import main
from bandpo.errors import UserError
from bandpo.methods.explain import Token, explain, parse_token
from bandpo.methods.method import FAMILIES, load_methods

MASKED = "masked: its sequence is off policy"


def of(name: str, text: str):
    return explain(load_methods(name)[0], parse_token(text))


@pytest.mark.parametrize(
    "text",
    [
        "logp=-3 adv=1.5 ratio=1.6 entropy=0.2",
        "  ratio=1.6,adv=1.5 , logp=-3\tentropy=2e-1",
        f"p={math.exp(-3)} new_p={1.6 * math.exp(-3)} adv=1.5 entropy=0.2",
    ],
)
def test_a_token_may_be_written_in_many_ways(text):
    token = parse_token(text)
    assert (token.advantage, token.entropy) == (1.5, 0.2)
    assert (token.p, token.ratio) == pytest.approx((math.exp(-3), 1.6))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'': no such key"),
        ("prob=0.1 adv=1 ratio=1", "'prob=0.1': no such key"),
        ("0.1", "'0.1': no such key"),
        ("p=0.1 adv=x ratio=1", "adv=x: not a number"),
        ("p=0.1 adv= ratio=1", "adv=: not a number"),
        ("p=0.1 adv=nan ratio=1", "adv=nan: must lie between"),
        ("p=0 adv=1 ratio=1", "p=0: must lie between"),
        ("p=1.5 adv=1 ratio=1", "p=1.5: must lie between"),
        ("logp=0.1 adv=1 ratio=1", "logp=0.1: must lie between -700 and 0"),
        ("logp=-2 adv=1 ratio=-1", "ratio=-1: must lie"),
        ("logp=-2 adv=1 ratio=inf", "ratio=inf: must lie"),
        ("logp=-2 adv=1 ratio=1 entropy=-1", "entropy=-1: must lie"),
        ("p=0.5 adv=1 ratio=2.5", "new probability would be 1.25; the ratio is at most 2"),
        ("p=0.5 p=0.6 adv=1 ratio=1", "p is given twice"),
        ("p=0.5 logp=-1 adv=1 ratio=1", "logp or p: both given"),
        ("p=0.5 adv=1", "ratio or new_p: missing"),
        ("adv=1 ratio=1", "logp or p: missing"),
        ("p=0.5 ratio=1", "adv is missing"),
    ],
)
def test_bad_tokens_are_refused_by_key(text, message):
    with pytest.raises(UserError, match=re.escape(message)):
        parse_token(text)


def test_numbers_of_canonical_clipping():
    e = of("grpo", "p=0.1 adv=2 ratio=1.6")
    assert (e.low, e.high, e.weight) == pytest.approx((0.8, 1.2, 0))
    assert (e.least.bound, e.most.bound) == pytest.approx((0.08, 0.12))
    assert e.words == "clipped: ratio > high"
    assert of("grpo", "p=0.1 adv=2 ratio=1.1").weight == pytest.approx(2.2)


def test_numbers_of_total_variation():
    e = of("band_tv:delta=0.03", "p=0.1 adv=-1 ratio=0.75")
    assert (e.least.bound, e.most.bound) == pytest.approx((0.07, 0.13))
    assert (e.weight, e.words) == (pytest.approx(-0.75), "kept")
    assert of("band_tv:delta=0.03", "p=0.1 adv=-1 ratio=0.69").words == "clipped: ratio < low"


def test_the_radius_of_band_is_that_of_its_divergence():
    e = of("dppo_kl", "p=0.2 adv=1 ratio=1")
    for q in (e.least.bound, e.most.bound):
        divergence = 0.2 * math.log(0.2 / q) + 0.8 * math.log(0.8 / (1 - q))
        assert divergence == pytest.approx(0.05, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "text", "weight", "words"),
    [
        ("grpo", "p=0.1 adv=1 ratio=0.5", 0.5, "kept: leads back"),
        ("grpo", "p=0.01 adv=-1 ratio=11", 0.0, "clipped by the dual clip"),
        ("grpo", "p=0.1 adv=0 ratio=3", 0.0, "none: no advantage"),
        ("cispo", "p=0.1 adv=1 ratio=8", 5.0, "62% of r·A"),
        ("cispo", "p=0.1 adv=1 ratio=4.5", 4.5, "kept"),
        # r·A − |A|·(r−1)²/(2·0.2), differentiated: r·(A − (r−1)/0.2)
        ("cfpo", "p=0.1 adv=1 ratio=1.6", -3.2, "pulled back, -200% of r·A"),
        ("cfpo", "p=0.1 adv=1 ratio=1.1", 0.55, "50% of r·A"),
        ("gspo", "p=0.1 adv=1 ratio=1.0005", 0.0, "clipped: ratio > high"),
        ("dppo_tv", "p=1e-12 adv=-1 ratio=1e9", 0.0, "none: |log ratio| > 20"),
        # 4·σ·(1 − σ)·r at σ = σ(r − 1)
        ("sapo", "p=0.1 adv=1 ratio=2", 8 * 0.7310586 * 0.2689414, "79% of r·A"),
        ("sapo", "p=0.01 adv=1 ratio=60", 0.0, "faded to 0% of r·A"),
        ("vespo", "p=0.1 adv=1 ratio=2", 4 * math.exp(-3), "10% of r·A"),
        ("ce_gppo", "p=0.1 adv=-1 ratio=0.5", -0.6, "120% of r·A"),
        ("ce_gppo", "p=0.1 adv=1 ratio=2", 1.2, "60% of r·A"),
        ("gmpo", "p=0.1 adv=1 ratio=1.5", 0.0, "clipped: ratio > high"),
        ("topr", "p=0.1 adv=-1 ratio=2", -1.0, "50% of r·A"),
        ("topr", "p=0.1 adv=1 ratio=0.5", 1.0, "200% of r·A"),
        ("off_policy_mask:threshold=0.1", "p=0.1 adv=-1 ratio=0.85", 0.0, MASKED),
        ("prime_rl", "p=0.1 adv=1 ratio=4", -2e-3 * math.log(4), "pulled back, -0.07% of r·A"),
    ],
)
def test_what_happens_to_the_gradient(name, text, weight, words):
    e = of(name, text)
    assert e.weight == pytest.approx(weight, rel=1e-6, abs=1e-12)
    assert e.words == words


def test_how_far_a_probability_may_go():
    rare, likely = "p=0.01 adv=1 ratio=1", "p=0.9 adv=1 ratio=1"
    assert str(of("grpo", rare).most) == "0.012"
    # 0.01·ln(0.01/q) + 0.99·ln(0.99/(1 − q)) = 0.05
    assert str(of("band_kl", rare).most) == "0.0781"
    assert str(of("band_tv", rare).least) == "0"
    # Past its bounds CISPO only stops growing the weight, CFPO turns the step round.
    assert str(of("cispo", rare).most) == "any"
    assert str(of("cfpo", rare).most) == "0.012"
    # SAPO has no bounds, TOPR one of the weight where A < 0.
    assert str(of("sapo", rare).most) == str(of("sapo", rare).least) == "any"
    assert str(of("topr", rare).most) == "any"
    # Canonical clipping lets a likely token aim for more than 1, Band does not.
    assert str(of("grpo", likely).most) == "1 (1.08)"
    assert float(str(of("band_kl", likely).most)) < 1


def test_entropy_widens_the_radius_that_follows_it():
    token = Token(p=0.2, ratio=1.0, advantage=1.0)
    (method,) = load_methods("band_kl_entropy")
    assert "entropy" in method.missing_inputs(token.batch())
    highs = [of("band_kl_entropy", f"p=0.2 adv=1 ratio=1 entropy={h}").high for h in (0, 0.5, 3)]
    expected = [of(f"band_kl:delta={d}", "p=0.2 adv=1 ratio=1").high for d in (0.02, 0.06, 0.1)]
    assert highs == pytest.approx(expected)


def test_the_command(capsys):
    assert main(["explain", "logp=-3.2 adv=1.0 ratio=1.6"]) == 0
    shown = capsys.readouterr().out
    for method in load_methods("all"):
        assert method.name in shown
    assert "band_kl_entropy is skipped" in shown and "gspo: a sequence's ratio" in shown
    assert main(["explain", "p=0.1", "adv=1", "ratio=1", "--methods", "grpo"]) == 0
    assert main(["explain", "p=0.1 adv=1 ratio=100"]) == 2
    assert "ratio=100" in capsys.readouterr().err


def test_methods_are_sorted_by_family(capsys):
    assert main(["explain", "logp=-3.2 adv=1 ratio=1.6 entropy=0.5 pass_rate=0.5 dual=2"]) == 0
    table = capsys.readouterr().out.split("──")[-1]
    family = {method.name: method.family for method in load_methods("all")}
    words = (line.split() for line in table.splitlines())
    named = [line[0] for line in words if line and line[0] in family]
    assert sorted(named) == sorted(family)
    places = [FAMILIES.index(family[name]) for name in named]
    assert places == sorted(places) and set(places) == set(range(len(FAMILIES)))
    own = [f for f in named if family[f] == "bounds that follow p"]
    assert {"band_kl", "band_tv", "dcpo"} <= set(own) and "grpo" not in own
