"""Every number of docs/theory.md, from the rules themselves and from another form of each."""

import math
import re
from functools import cache
from pathlib import Path

import pytest
import torch

from bandpo.loss import (
    Band,
    BandChi2,
    BandKL,
    BandTV,
    Clip,
    Mask,
    ReverseKL,
    SquaredHellinger,
    TokenBatch,
)

PAGE = (Path(__file__).parents[2] / "docs/theory.md").read_text(encoding="utf-8")
DELTA = 0.05
# f of each divergence, once more, in plain Python.
GENERATORS = {
    "KL": lambda u: u - 1 - math.log(u),
    "TV": lambda u: abs(u - 1) / 2,
    "χ²": lambda u: (u - 1) ** 2,
    "Hellinger": lambda u: (math.sqrt(u) - 1) ** 2,
    "reverse KL": lambda u: u * math.log(u) - u + 1 if u > 0 else 1.0,
}
RULES = {
    "KL": BandKL,
    "TV": BandTV,
    "χ²": BandChi2,
    "Hellinger": lambda delta: Band(SquaredHellinger(), delta),
    "reverse KL": lambda delta: Band(ReverseKL(), delta),
}
NAMES = ("KL", "TV", "χ²", "Hellinger")


def bounds(name: str, p: float, delta: float = DELTA) -> tuple[float, float]:
    """Of the shipped rule, in float64."""
    interval = RULES[name](delta)(torch.tensor(p, dtype=torch.float64).log())
    return interval.low.item(), interval.high.item()


def coins(name: str, p: float, q: float) -> float:
    """The divergence of two coins, the page's g, at the new probability q."""
    f = GENERATORS[name]
    return p * f(q / p) + (1 - p) * f((1 - q) / (1 - p))


def bisected(function, inside: float, outside: float) -> float:
    """The point between two where a function changes from true to false."""
    for _ in range(200):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if function(middle) else (inside, middle)
    return inside


def by_bisection(name: str, p: float, delta: float = DELTA) -> tuple[float, float]:
    """The same bounds from the definition: how far q may go while the coins differ by at most δ."""

    def is_near(q: float) -> bool:
        return coins(name, p, q) <= delta

    return bisected(is_near, p, 1e-300) / p, bisected(is_near, p, 1 - 1e-16) / p


def table(name: str) -> list[list[float]]:
    """The numbers of a table of the page, by row."""
    rows = PAGE.partition(f"<!-- numbers: {name} -->\n")[2].partition("\n\n")[0].splitlines()[2:]
    assert len(rows) >= 4
    return [[float(x) for x in re.findall(r"\d[\d.e-]*", row)] for row in rows]


def shown(*values: float):
    """Values as a table shows them, to three digits."""
    return pytest.approx(values, rel=6e-3, abs=6e-5)


@pytest.mark.parametrize("p", [0.001, 0.05, 0.3, 0.9])
@pytest.mark.parametrize("name", RULES)
def test_the_rules_are_the_definition(name, p):
    assert bounds(name, p) == pytest.approx(by_bisection(name, p), rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("row", table("probability"), ids=lambda row: f"p={row[0]}")
def test_the_probabilities_that_a_rollout_allows(row):
    p, *allowed = row
    fixed = (min(p * 1.2, 1), min(p * 1.28, 1))
    assert allowed == shown(*fixed, *(p * by_bisection(name, p)[1] for name in NAMES[:3]))


@pytest.mark.parametrize("row", table("ratio"), ids=lambda row: f"p={row[0]}")
def test_the_bounds_of_the_ratio(row):
    p, *found = row
    assert found == shown(*(bound for name in NAMES for bound in by_bisection(name, p)))


@pytest.mark.parametrize("row", table("radius"), ids=lambda row: f"δ={row[0]}")
def test_what_a_radius_means(row):
    delta, rare, *pairs, high_is, low_is = row
    expected = (*by_bisection("KL", 0.05, delta), *by_bisection("KL", 0.5, delta))
    assert [rare, *pairs] == shown(0.001 * by_bisection("KL", 0.001, delta)[1], *expected)
    # q = 1.2·p or 0.8·p at a divergence of δ.
    assert coins("KL", high_is, 1.2 * high_is) == pytest.approx(delta, rel=0.01)
    assert coins("KL", low_is, 0.8 * low_is) == pytest.approx(delta, rel=0.01)


def rollouts(most, p: float = 0.001, to: float = 0.5) -> int:
    """How many bounds in a row lead from p to `to`."""
    count = 0
    while p < to:
        p, count = p * most(p), count + 1
    return count


@cache
def sentences() -> dict[str, str]:
    """Fragments of the page with the numbers that belong there, by what they are about."""
    half = math.sqrt(1 - math.exp(-2 * DELTA))
    low, high = bounds("KL", 0.5)
    cap = bisected(lambda p: bounds("KL", p)[1] > 10, 1e-4, 0.5)
    above = bisected(lambda p: coins("KL", p, 1.2 * p) < DELTA, 0.01, 0.83)
    below = bisected(lambda p: coins("KL", p, 0.8 * p) < DELTA, 0.01, 0.99)
    band = rollouts(lambda p: min(bounds("KL", p)[1], 10))
    return {
        "the canonical bound leaves the simplex": f"Above p = 1/1.2 = {1 / 1.2:.3f} the canonical",
        "rollouts": f"{rollouts(lambda _: 1.2)} rollouts under canonical clipping, "
        f"{rollouts(lambda _: 1.28)} under Clip-Higher, and {band} under Band-KL",
        "KL at one half": f"r = 1 ± √(1 − e^−2δ), that is {1 - half:.3f} and {1 + half:.3f} for "
        f"δ = {DELTA}",
        "the cap": f"binds below p = {cap:.4f} for Band-KL at {DELTA}",
        "limit of KL": f"1 − e^−δ = {1 - math.exp(-DELTA):.4f} for KL, δ = {DELTA} for TV",
        "limit of Hellinger": f"δ − δ²/4 = {DELTA - DELTA**2 / 4:.4f} for Hellinger",
        "limit of likely tokens": f"e^−δ = {math.exp(-DELTA):.3f} for KL, 1 − δ = {1 - DELTA} for "
        f"TV, (1 − δ/2)² = {(1 - DELTA / 2) ** 2:.3f} for Hellinger",
        "q at one half": f"Band-KL allows q from {low / 2:.3f} to {high / 2:.3f}",
        "crossings": f"is 1.2 at p = {above:.3f}, its lower bound 0.8 at p = {below:.3f}",
        "between divergences": f"χ² at {DELTA} is as tight as KL at {DELTA / 2}, and Hellinger at "
        f"{DELTA} as wide as KL at {DELTA * 2}",
        "the lower bound": f"At p = {0.05} Band-KL's lower bound is {bounds('KL', 0.05)[0]:.3f} "
        f"where canonical clipping has {1 - 0.2}",
        "twenty tokens": f"Of 20 equally likely tokens, Band-TV at {DELTA} lets ten double and ten "
        f"vanish, each within its bounds; the total variation is then {20 * DELTA / 2}, ten",
        "sequences": f"1,000 tokens at {DELTA} nats each are {1000 * DELTA:.0f} nats",
    }


FLOWING = " ".join(PAGE.split())


@pytest.mark.parametrize("about", sentences())
def test_a_number_in_the_text(about):
    assert sentences()[about] in FLOWING


def test_no_other_number_stands_in_the_text():
    """Decimals of the text are settings (δ, ε, the papers' radii) or held by the tests above."""
    text = " ".join(re.sub(r"<!-- numbers: \w+ -->\n(?:\|.*\n)+", "", PAGE).split())
    for sentence in sentences().values():
        text = text.replace(sentence, "")
    settings = {"0.05", "0.2", "0.28", "0.03", "0.1", "1.2", "0.8", "0.001", "0.5", "1.5"}
    settings |= {"2603.04918"}
    assert set(re.findall(r"\d+\.\d+", text)) <= settings


@pytest.mark.parametrize("name", ["KL", "TV", "Hellinger"])
def test_a_rare_token_may_gain_about_delta(name):
    slope = {"KL": 1, "TV": 0.5, "Hellinger": 1}[name]
    f = GENERATORS[name]
    limit = bisected(lambda q: slope * q + f(1 - q) <= DELTA, 0, 1 - 1e-9)
    assert 1e-12 * bounds(name, 1e-12)[1] == pytest.approx(limit, rel=1e-4)
    closed = {"KL": 1 - math.exp(-DELTA), "TV": DELTA, "Hellinger": DELTA - DELTA**2 / 4}
    assert limit == pytest.approx(closed[name], rel=1e-6)


def test_rare_tokens_under_divergences_that_grow_faster_than_linearly():
    p = 1e-12
    assert p * bounds("χ²", p)[1] == pytest.approx(math.sqrt(DELTA * p), rel=1e-4)
    assert p * 1.2 < 1e3 * p < p * bounds("reverse KL", p)[1] < 0.01


def test_the_lower_bound_of_a_rare_token_under_kl():
    low, _ = bounds("KL", 0.001)
    assert math.log(low) == pytest.approx(-DELTA / 0.001, rel=0.03)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("reverse KL", 1 - math.exp(-DELTA), math.exp(-DELTA)),
        ("TV", DELTA, 1 - DELTA),
        ("χ²", DELTA / (1 + DELTA), 1 / (1 + DELTA)),
        ("Hellinger", 1 - (1 - DELTA / 2) ** 2, (1 - DELTA / 2) ** 2),
    ],
)
def test_where_a_bound_saturates(name, low, high):
    assert bounds(name, low * 0.999)[0] == pytest.approx(0, abs=1e-9)
    assert bounds(name, low * 1.01)[0] > 1e-9
    beyond = min(high * 1.001, 1 - 1e-9)
    assert bounds(name, beyond)[1] == pytest.approx(1 / beyond)
    assert bounds(name, high * 0.99)[1] < 1 / (high * 0.99) * (1 - 1e-6)


def test_small_changes_of_all_divergences_differ_by_the_second_derivative():
    p, step = 0.3, 1e-3
    for name, second in {"KL": 1, "reverse KL": 1, "χ²": 2, "Hellinger": 0.5}.items():
        expected = 0.5 * second * step**2 * p / (1 - p)
        assert coins(name, p, p * (1 + step)) == pytest.approx(expected, rel=0.01)


def test_each_token_within_its_bounds_and_the_policy_far_outside_the_region():
    old = torch.full((20,), 0.05, dtype=torch.float64)
    new = torch.tensor([0.1, 0.0] * 10, dtype=torch.float64)
    low, high = BandTV(DELTA)(old.log())
    assert (low - 1e-9 <= new / old).all() and (new / old <= high + 1e-9).all()
    assert (new - old).abs().sum().item() / 2 == pytest.approx(10 * DELTA)


def test_clip_and_mask_have_one_gradient_which_ends_where_the_coins_differ_by_delta():
    ratios = torch.linspace(0.05, 4, 400, dtype=torch.float64)
    old = torch.full_like(ratios, 0.2).log()
    for advantage in (1.0, -1.0):
        logp = (old + ratios.log()).requires_grad_()
        ones = torch.ones_like(ratios)
        batch = TokenBatch(logp=logp, old_logp=old, advantages=advantage * ones, mask=ones)
        found = []
        for surrogate in (Clip(BandKL(DELTA)), Mask(BandKL(DELTA))):
            objective = surrogate((logp - old).exp(), batch).objective
            found.append(torch.autograd.grad(objective.sum(), logp)[0])
        assert torch.equal(*found)
        outward = [
            (r - 1) * advantage > 0 and coins("KL", 0.2, 0.2 * r) > DELTA for r in ratios.tolist()
        ]
        assert (found[0] == 0).tolist() == outward
