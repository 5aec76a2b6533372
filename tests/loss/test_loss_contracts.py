"""Bounds and divergences of one's own are tried before a run; every one that ships passes."""

import dataclasses
import math
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bandpo.errors import UserError
from bandpo.loss import (
    KL,
    AlphaDivergence,
    Band,
    BandChi2,
    BandKL,
    BandTV,
    Bounds,
    Capped,
    ChiSquared,
    Clip,
    Compiled,
    Divergence,
    DualClip,
    DynamicAdaptive,
    EntropyRadius,
    Fixed,
    Interval,
    JensenShannon,
    LinearRadius,
    Mask,
    Mixed,
    PolicyLoss,
    ReverseKL,
    SequenceMeanTokenMean,
    SquaredHellinger,
    TokenBatch,
    TokenRatio,
    TotalVariation,
    TruncatedWeight,
    Union,
    debugging,
)
from bandpo.loss.contracts import check_bounds, check_contracts, check_divergence
from bandpo.methods.method import load_methods

PAGE = Path(__file__).resolve().parents[2] / "docs/extending.md"


@pytest.mark.parametrize("method", load_methods("all"), ids=lambda method: method.name)
def test_every_method_that_ships_keeps_its_contracts(method):
    method.loss.check()  # raises where one is broken
    assert method.name and method.loss.surrogate is not None


@pytest.mark.parametrize(
    "divergence",
    [
        *(KL(), ReverseKL(), TotalVariation(), ChiSquared(), SquaredHellinger(), JensenShannon()),
        *map(AlphaDivergence, (-5, -1, -0.01, 0.005, 0.1, 0.5, 0.9, 0.999, 1.001, 1.1, 2, 5)),
    ],
    ids=str,
)
def test_every_divergence_that_ships_is_one(divergence):
    check_divergence(divergence)
    assert float(divergence.f(torch.ones((), dtype=torch.float64))) == 0.0
    for delta in (1e-4, 0.05, 1.0):
        check_bounds(Band(divergence, delta))


@pytest.mark.parametrize(
    "bounds",
    [
        *(Fixed(0.2, 0.28), Fixed(1, 0), DynamicAdaptive(0.16, 0.2), Capped(BandKL(5.0), 1.0)),
        *(BandKL(5.0), BandTV(5.0), BandChi2(5.0), Union(BandKL(0.05), Fixed(0.2, 0.2))),
        *(Mixed(Fixed(0.2, 0.2), BandKL(0.05)), BandKL(LinearRadius(0.1, 0.2, 10))),
        BandTV(EntropyRadius(0.01, 0.1)),
    ],
    ids=str,
)
def test_every_rule_that_ships_keeps_the_contract(bounds):
    check_contracts(Clip(bounds))
    entropy = torch.full((1, 3), 0.5)
    interval = bounds.for_batch(batch(entropy=entropy))(torch.tensor([[0.01, 0.5, 0.99]]).log())
    assert (interval.low <= 1).all() and (interval.high >= 1).all()


def test_the_classes_of_the_page_on_extending_keep_theirs():
    blocks = re.findall(r"```python\n# (my_[db]\w+)\.py\n(.*?)```", PAGE.read_text(), re.DOTALL)
    made = {}
    for name, code in blocks:
        made[name] = {"__name__": name}
        exec(code, made[name])
    check_divergence(made["my_divergence"]["Neyman"]())
    check_bounds(made["my_bounds"]["SquareRoot"](0.2))
    assert made["my_divergence"]["Neyman"]().f(1.0) == 0.0


def rule(interval):
    """A rule whose interval is the function's of p [3, 5]."""

    class Rule(Bounds):
        def __call__(self, old_logp: Tensor) -> Interval:
            return interval(old_logp.exp())

    return Rule()


@pytest.mark.parametrize(
    ("interval", "property"),
    [
        (lambda p: Interval(0 * p + 1.1, 0 * p + 0.9), "breaks low <= 1 <= high"),
        (lambda p: Interval(p * 2, 0 * p + 2), "where p = 0.75 its interval"),
        (lambda p: (1.1, 0.9), r"must return an Interval\(low, high\)"),
        (lambda p: Interval(0.8, 1.2), "low is 0.8, not a tensor"),
        (lambda p: Interval(*[p.mean()] * 2), r"low has shape \(\) for .* shape \(3, 5\)"),
        (lambda p: Interval(0 * p, 1 / p**9), "high is inf where p = 1e-30"),
        (lambda p: Interval(0 * p, 1 + p * torch.ones((), requires_grad=True)), "high has a grad"),
        (lambda p: Interval(*[p.bfloat16()] * 2), "low is of torch.bfloat16"),
        (lambda p: 1 / 0, "raised ZeroDivisionError"),
    ],
)
@pytest.mark.parametrize("place", [lambda r: r, lambda r: DualClip(Clip(Capped(r, 10)), 3)])
def test_a_rule_is_named_with_the_property_that_it_lacks(interval, property, place):
    with pytest.raises(UserError, match=rf"{__name__}\.rule\.<locals>\.Rule.*{property}"):
        check_contracts(place(rule(interval)))


@dataclasses.dataclass(frozen=True)
class Any(Divergence):
    """KL with one part replaced."""

    at_zero: float = math.inf
    growth: float = 1.0
    f: object = KL().f
    derivative: object = KL().derivative
    log_shrink: object = None

    def __post_init__(self):
        if self.log_shrink is None:
            object.__setattr__(self, "log_shrink", KL().log_shrink)


# The dataclass fills in the abstract methods.
Any.__abstractmethods__ = frozenset()


@pytest.mark.parametrize(
    ("changes", "property"),
    [
        ({"f": lambda u: u - 1.5 - u.log()}, r"f\(1\) must be 0, and is -0.5"),
        ({"f": lambda u: u.log()}, "f is not convex near u ="),
        ({"f": lambda u: (u - 1).sqrt()}, r"f\(.*\) is nan, not finite"),
        ({"derivative": lambda u: 1 + 1 / u}, r"derivative\(.*\) is .*, where f rises"),
        ({"at_zero": 1.0}, "at_zero must be the limit of .* grows without end, and is 1"),
        ({"growth": math.inf}, "growth must be the limit of .* tends to 1, and is inf"),
        ({"growth": 2.0}, "growth must be the limit of .*, 1, and is 2"),
        ({"log_shrink": lambda a, b, delta: -delta}, "log_shrink gives x = "),
    ],
)
def test_a_divergence_is_named_with_the_property_that_it_lacks(changes, property):
    check_divergence(Any())
    with pytest.raises(UserError, match=rf"{__name__}\.Any is no f-divergence: {property}"):
        check_contracts([Clip(Band(Any(**changes), 0.05))])


def loss_of(surrogate):
    return PolicyLoss(TokenRatio(), surrogate, SequenceMeanTokenMean())


@pytest.mark.parametrize(
    ("compose", "message"),
    [
        (lambda: Clip(0.2), r"Clip: bounds must be a rule .* Fixed\(0\.2, 0\.2\).* not 0\.2"),
        (lambda: Mask(Clip(Fixed(0.2, 0.2))), "Mask: bounds must be a rule"),
        (lambda: TruncatedWeight(Fixed), "not the class Fixed; call it"),
        (lambda: Capped(0.2, 10), "Capped: inner must be a rule"),
        (lambda: Union(BandKL(0.05), 0.2), "Union: second must be a rule"),
        (lambda: Mixed(0.2, BandKL(0.05)), "Mixed: low must be a rule"),
        (lambda: Compiled(None), "Compiled: inner must be a rule"),
        (lambda: Band(Fixed(0.2, 0.2), 0.05), "Band: divergence must be a divergence"),
        (lambda: DualClip(BandKL(0.05)), r"DualClip: surrogate must be .* Clip\(BandKL\(…\)\)"),
        (lambda: loss_of(Fixed(0.2, 0.2)), r"PolicyLoss: surrogate must be .* Clip\(Fixed\(…\)\)"),
        (lambda: loss_of(Clip), "PolicyLoss: surrogate must be a surrogate.* the class Clip"),
        (
            lambda: PolicyLoss(Clip, Clip(Fixed(0, 0)), SequenceMeanTokenMean()),
            "PolicyLoss: ratio must be a ratio, such as TokenRatio",
        ),
        (
            lambda: PolicyLoss(TokenRatio(), Clip(Fixed(0, 0)), TokenRatio()),
            "PolicyLoss: aggregate must be an aggregate",
        ),
    ],
)
def test_parts_in_each_others_places_are_refused(compose, message):
    with pytest.raises(UserError, match=message):
        compose()


def batch(**changes):
    logp = torch.tensor([[-0.1, -2.0, -3.0]])
    mask = torch.tensor([[1.0, 1.0, 0.0]])
    parts = {"logp": logp, "old_logp": logp, "advantages": torch.ones(1, 3), "mask": mask}
    return TokenBatch(**{**parts, **changes})


@pytest.mark.parametrize("name", ["logp", "old_logp", "ref_logp", "rollout_logp"])
@pytest.mark.parametrize("wrong", [0.5, math.nan, math.inf])
def test_values_that_are_no_log_probabilities_are_refused(name, wrong):
    values = torch.tensor([[-0.1, wrong, -3.0]])
    message = rf"TokenBatch\.{name}: 1 of 2 values are no log-probabilities, the first {wrong:g}"
    with pytest.raises(UserError, match=message):
        batch(**{name: values}).check()
    loss = loss_of(Clip(BandKL(0.05)))
    loss(batch(**{name: values}))  # costs nothing, and checks nothing, outside
    with debugging(), pytest.raises(UserError, match=message):
        loss(batch(**{name: values}))
    with debugging(), debugging(False):
        loss(batch(**{name: values}))


def test_masked_values_and_rounding_are_none_of_them():
    values = torch.tensor([[1e-6, -2.0, math.nan]])
    batch(logp=values).check()
    with debugging():
        loss_of(Clip(BandKL(0.05)))(batch(logp=values))
        interval = BandKL(0.05)(torch.tensor([1e-6, -math.inf, -3.0]))
    assert not (interval.low.isnan() | interval.high.isnan()).any()


@pytest.mark.parametrize("bounds", [Fixed(0.2, 0.2), BandKL(0.05), DynamicAdaptive(0.16, 0.2)])
def test_bounds_refuse_them_too(bounds):
    probabilities = torch.tensor([0.1, 0.9])
    bounds(probabilities)
    with debugging(), pytest.raises(UserError, match=r"bounds: 2 of 2 .*\(probabilities need log"):
        bounds(probabilities)
