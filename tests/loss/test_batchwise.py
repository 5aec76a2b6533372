"""Rules of a whole batch or a group: against loops that are written out, and whatever the split."""

import dataclasses
import itertools
import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bandpo.errors import UserError
from bandpo.loss import (
    Balanced,
    Band,
    BandKL,
    Capped,
    Clip,
    ClipCovariance,
    DualClip,
    DynamicAdaptive,
    Elastic,
    Fixed,
    KLCovariance,
    LinearRadius,
    Mixed,
    PolicyLoss,
    QueryKL,
    SecondMomentMask,
    SquaredHellinger,
    TokenBatch,
    TokenMean,
    TokenRatio,
    Unclipped,
    Union,
    batch_totals,
    vanishes_at_zero_advantage,
)
from bandpo.loss.batchwise.covariance import draws
from bandpo.loss.statistic import asking_parts, merged, with_statistics

ROWS, TOKENS = 8, 11
COVERING = {"share": 0.1, "low": 0.2, "high": 4.0}
ASKING = {
    "m2po": SecondMomentMask(Unclipped()),
    "m2po, clipped": SecondMomentMask(Clip(Fixed(0.2, 0.28)), 0.1),
    "clip_cov": ClipCovariance(Clip(Fixed(0.2, 0.2)), **COVERING),
    "kl_cov": KLCovariance(Unclipped(), 0.7, 0.1),
    "bapo": DualClip(Clip(Balanced(0.55)), 3.0),
}
seeds = st.integers(0, 2**31)


def batch_of(seed: int, spread: float = 0.3) -> TokenBatch:
    """Ratios on both sides of every region; some samples of advantage 0, in groups of four."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randn(4, ROWS, TOKENS, generator=generator, dtype=torch.float64)
    old_logp = -draw[0].square() - 0.01
    logp = (old_logp + spread * draw[1]).clamp(max=-1e-3).requires_grad_()
    advantages = draw[2, :, :1].expand(ROWS, TOKENS).clone()
    advantages[1::5] = 0.0
    lengths = torch.randint(1, TOKENS + 1, (ROWS, 1), generator=generator)
    every = torch.ones_like(old_logp)
    return TokenBatch(
        logp,
        old_logp,
        advantages,
        (torch.arange(TOKENS) < lengths).double(),
        step=3,
        pass_rate=every * torch.tensor([[0.25], [0.75]]).repeat_interleave(4, 0),
        dual=every * torch.tensor([[0.6], [2.5]]).repeat_interleave(4, 0),
        number=every * torch.arange(100, 100 + ROWS)[:, None],
    )


def rows_of(batch: TokenBatch, rows: list[int]) -> TokenBatch:
    """Some of its sequences, without the columns that they leave empty."""
    width = max(1, int(batch.mask[rows].sum(-1).max()))
    return batch._each(lambda tensor: tensor[rows, :width])


def loss_of(surrogate) -> PolicyLoss:
    return PolicyLoss(TokenRatio(), surrogate, TokenMean())


def gradient(surrogate, batch: TokenBatch) -> list[list[float]]:
    """Of the objective's sum, as nested lists for loops."""
    found = torch.autograd.grad(-loss_of(surrogate)(batch).loss, batch.logp)[0]
    return (found * batch.mask.sum()).tolist()


def tokens_of(batch: TokenBatch):
    """(row, column, log r, advantage, old log-probability) of every token."""
    for i, j in itertools.product(range(ROWS), range(TOKENS)):
        if batch.mask[i, j]:
            old = float(batch.old_logp[i, j])
            gap = float(batch.logp.detach()[i, j]) - old
            yield i, j, gap, float(batch.advantages[i, j]), old


def check(found: list[list[float]], expected: dict[tuple[int, int], float]) -> None:
    for i, j in itertools.product(range(ROWS), range(TOKENS)):
        assert found[i][j] == pytest.approx(expected.get((i, j), 0.0), abs=1e-12), (i, j)


@pytest.mark.parametrize("name", ASKING)
@settings(max_examples=15)
@given(seed=seeds)
def test_losses_and_gradients_of_parts_are_those_of_the_whole(name, seed):
    loss, batch, rng = loss_of(ASKING[name]), batch_of(seed), random.Random(seed)
    whole = loss(batch)
    (expected,) = torch.autograd.grad(whole.loss, batch.logp)
    order = list(range(ROWS))
    rng.shuffle(order)
    cuts = sorted(rng.sample(range(1, ROWS), rng.randint(1, 4)))
    parts = [order[a:b] for a, b in itertools.pairwise([0, *cuts, ROWS])]
    pieces = [rows_of(batch, rows).neutral() for rows in parts]
    found = [[part.statistic(piece) for part in asking_parts(loss)] for piece in pieces]
    informed, totals = with_statistics(loss, merged(found)), batch_totals(batch.mask)
    value = sum(informed(piece, totals).loss for piece in pieces)
    assert value.item() == pytest.approx(whole.loss.item(), abs=1e-13)
    (split,) = torch.autograd.grad(value, batch.logp)
    torch.testing.assert_close(split, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", ["m2po", "clip_cov", "kl_cov", "bapo"])
def test_of_each_micro_batch_by_itself_it_would_be_another_rule(name):
    loss, batch = loss_of(ASKING[name]), batch_of(1)
    totals = batch_totals(batch.mask)
    pieces = [rows_of(batch, [2 * k, 2 * k + 1]) for k in range(ROWS // 2)]
    value = sum(
        with_statistics(loss, [p.statistic(piece.neutral()) for p in asking_parts(loss)])(
            piece, totals
        ).loss
        for piece in pieces
    )
    assert abs(value.item() - loss(batch).loss.item()) > 1e-4


@settings(max_examples=30)
@given(seed=seeds, spread=st.sampled_from([0.05, 0.3, 1.0, 4.0]))
def test_m2po_drops_the_largest_until_the_mean_is_small(seed, spread):
    batch = batch_of(seed, spread)
    kept = sorted(tokens_of(batch), key=lambda token: token[2] ** 2)
    while kept and sum(token[2] ** 2 for token in kept) / len(kept) >= 0.04:
        kept.pop()
    check(gradient(ASKING["m2po"], batch), {(i, j): math.exp(d) * a for i, j, d, a, _ in kept})


def test_m2po_drops_tied_tokens_together_and_reports_its_bounds():
    gaps = torch.tensor([[0.1, -0.1, 0.4, -0.4, 0.4, 0.0]], dtype=torch.float64)
    one = torch.ones_like(gaps)
    batch = TokenBatch((gaps - 1).requires_grad_(), -one, one, one)
    output = loss_of(ASKING["m2po"])(batch)  # one of 0.4 in four would be within 0.04·4
    assert output.binding_high.tolist() == [[False, False, True, False, True, False]]
    assert output.binding_low.tolist() == [[False, False, False, True, False, False]]
    reach = math.sqrt((0.1**2 + 0.4**2) / 2)
    assert output.interval.high[0, 0].item() == pytest.approx(math.exp(reach))
    assert output.interval.low[0, 0].item() == pytest.approx(math.exp(-reach))
    far = dataclasses.replace(batch, logp=(-1 + 0.5 * one).requires_grad_())
    assert gradient_is_zero(far)  # nothing is near: nothing is learned


def gradient_is_zero(batch: TokenBatch) -> bool:
    loss = loss_of(ASKING["m2po"])(batch).loss
    return bool((torch.autograd.grad(loss, batch.logp)[0] == 0).all())


def covariances(batch: TokenBatch) -> dict[tuple[int, int], float]:
    every = list(tokens_of(batch))
    mean_a = math.fsum(t[3] for t in every) / len(every)
    mean_l = math.fsum(t[4] for t in every) / len(every)
    return {(i, j): (a - mean_a) * (old - mean_l) for i, j, _, a, old in every}


@settings(max_examples=20)
@given(seed=seeds)
def test_clip_cov_drops_some_tokens_of_high_covariance(seed):
    batch, surrogate = batch_of(seed), ASKING["clip_cov"]
    covariance, drawn = covariances(batch), draws(batch).long().tolist()
    expected, candidates = {}, []
    for i, j, gap, a, _ in tokens_of(batch):
        ratio = math.exp(gap)
        clipped = (a > 0 and ratio > 1.2) or (a < 0 and ratio < 0.8)
        expected[i, j] = 0.0 if clipped else ratio * a
        if not clipped and surrogate.low < covariance[i, j] < surrogate.high:
            candidates.append((drawn[i][j], (i, j)))
    count = max(int(surrogate.share * len(expected)), 1)
    for _, place in sorted(candidates)[:count]:
        expected[place] = 0.0
    check(gradient(surrogate, batch), expected)


@settings(max_examples=20)
@given(seed=seeds)
def test_kl_cov_penalises_the_tokens_of_highest_covariance(seed):
    batch, covariance = batch_of(seed), covariances(batch_of(seed))
    count = max(int(0.1 * len(covariance)), 1)
    chosen = sorted(covariance, key=covariance.__getitem__, reverse=True)[:count]
    expected = {(i, j): math.exp(gap) * a for i, j, gap, a, _ in tokens_of(batch)}
    for i, j, gap, _, _ in tokens_of(batch):
        if (i, j) in chosen and covariance[i, j] > 0:
            expected[i, j] -= 0.7 * math.copysign(1.0, gap)
    check(gradient(ASKING["kl_cov"], batch), expected)


def test_draws_are_even_and_differ_by_step_sample_and_place():
    number = torch.arange(1000.0)[:, None].expand(1000, 64)
    zero = torch.zeros_like(number)
    batch = TokenBatch(zero, zero, zero, zero + 1, number=number)
    values = draws(batch) / 2**24
    assert values.min() >= 0 and values.max() < 1
    assert values.mean().item() == pytest.approx(0.5, abs=0.005)
    tenths = torch.histc(values, 10, 0, 1) / values.numel()
    assert (tenths - 0.1).abs().max() < 0.005
    assert abs(torch.corrcoef(values[:, :2].T)[0, 1]) < 0.1  # of neighbours in a sample
    assert abs(torch.corrcoef(values[:2])[0, 1]) < 0.4  # and of two samples
    later = draws(dataclasses.replace(batch, step=1)) / 2**24
    assert abs(torch.corrcoef(torch.stack([values.flatten(), later.flatten()]))[0, 1]) < 0.02
    with pytest.raises(ValueError, match="number"):
        draws(dataclasses.replace(batch, number=None))


@settings(max_examples=30)
@given(seed=seeds, share=st.sampled_from([0.0, 0.3, 0.5, 0.6, 0.8, 1.0]))
def test_bapo_widens_until_positive_tokens_have_their_share(seed, share):
    batch, (low, high) = batch_of(seed), (0.6, 1.2)

    def enough() -> bool:
        mass = [(math.exp(gap), a) for _, _, gap, a, _ in tokens_of(batch)]
        positive = sum(r * a for r, a in mass if a > 0 and r <= high)
        negative = -sum(r * a for r, a in mass if a < 0 and r >= low)
        return positive >= share * (positive + negative)

    while not enough():
        if high + 0.05 < 3.0 + 1e-9:
            high += 0.05
        elif low + 0.02 < 0.9 + 1e-9:
            low += 0.02
        else:
            break
    interval = loss_of(Clip(Balanced(share)))(batch).interval
    assert interval.low[0, 0].item() == pytest.approx(low, abs=1e-9)
    assert interval.high[0, 0].item() == pytest.approx(high, abs=1e-9)
    expected = {}
    for i, j, gap, a, _ in tokens_of(batch):
        ratio = math.exp(gap)
        clipped = (a > 0 and ratio > high) or (a < 0 and ratio < low)
        expected[i, j] = 0.0 if clipped else ratio * a
    check(gradient(Clip(Balanced(share)), batch), expected)


INNER = [
    Fixed(0.2, 0.28),
    BandKL(0.05),
    Band(SquaredHellinger(), LinearRadius(0.02, 0.1, 10)),
    Capped(BandKL(0.05), 10.0),
    Union(BandKL(0.05), Fixed(0.2, 0.28)),
    Mixed(low=Fixed(0.2, 0.2), high=BandKL(0.05)),
    DynamicAdaptive(0.16, 0.2),
]


@pytest.mark.parametrize("inner", INNER, ids=str)
def test_elastic_bounds_are_the_inner_ones_with_a_radius_per_token(inner):
    batch = batch_of(7)
    plain, elastic = inner.for_batch(batch), Elastic(inner, 0.5, 0.8, 2.0)
    low, high = elastic.for_batch(batch)(batch.old_logp)
    for i, j, _, a, _ in tokens_of(batch):
        p = float(batch.pass_rate[i, j])
        factor = (1 + 0.5 * min(abs(a), 2.0) / 2.0) * (1 + 0.8 * 4 * p * (1 - p))
        expected = scaled(plain, factor)(batch.old_logp[i, j])
        assert low[i, j].item() == pytest.approx(expected.low.item(), rel=1e-9)
        assert high[i, j].item() == pytest.approx(expected.high.item(), rel=1e-9)
    ratio = TokenRatio()(batch).detach()
    found = gradient(Clip(elastic), batch)
    for i, j, _, a, _ in tokens_of(batch):
        r = float(ratio[i, j])
        clipped = (a > 0 and r > high[i, j]) or (a < 0 and r < low[i, j])
        assert found[i][j] == pytest.approx(0.0 if clipped else r * a, abs=1e-12)


def scaled(bounds, factor: float):
    """The rule with numbers in its place that are that much larger."""
    if isinstance(bounds, Capped):
        return Capped(scaled(bounds.inner, factor), bounds.max_ratio)
    if isinstance(bounds, Union):
        return Union(scaled(bounds.first, factor), scaled(bounds.second, factor))
    if isinstance(bounds, Mixed):
        return Mixed(scaled(bounds.low, factor), scaled(bounds.high, factor))
    if isinstance(bounds, Band):
        return dataclasses.replace(bounds, delta=bounds.delta * factor)
    return dataclasses.replace(
        bounds, eps_low=bounds.eps_low * factor, eps_high=bounds.eps_high * factor
    )


@pytest.mark.parametrize("inner", INNER, ids=str)
def test_an_elastic_region_that_does_not_stretch_is_the_inner_one_bit_for_bit(inner):
    batch = dataclasses.replace(batch_of(7), pass_rate=None)
    expected = inner.for_batch(batch)(batch.old_logp)
    found = Elastic(inner, 0.0, 0.0).for_batch(batch)(batch.old_logp)
    assert torch.equal(found.low, expected.low) and torch.equal(found.high, expected.high)


def test_query_kl_learns_up_to_the_optimum_of_its_query_and_back_from_beyond():
    batch = batch_of(5)
    expected = {}
    for i, j, gap, a, _ in tokens_of(batch):
        dual = float(batch.dual[i, j])
        expected[i, j] = math.exp(gap) * (a - dual * gap) if a else 0.0
    check(gradient(QueryKL(), batch), expected)
    optimum = batch.old_logp + batch.advantages / batch.dual
    there = dataclasses.replace(batch, logp=optimum.requires_grad_())
    assert max(abs(value) for row in gradient(QueryKL(), there) for value in row) < 1e-12
    interval = loss_of(QueryKL())(batch).interval
    size = (batch.advantages / batch.dual).abs() * batch.mask
    torch.testing.assert_close(interval.high.log(), size)
    with pytest.raises(ValueError, match="dual"):
        loss_of(QueryKL())(dataclasses.replace(batch, dual=None))


@pytest.mark.parametrize(
    "surrogate",
    [*ASKING.values(), KLCovariance(Unclipped(), 0.7, 0.9), QueryKL(), Clip(Elastic(BandKL(0.05)))],
)
def test_what_is_said_of_samples_of_advantage_0_holds(surrogate):
    batch = batch_of(11)
    (found,) = torch.autograd.grad(loss_of(surrogate)(batch).loss, batch.logp)
    silent = bool((found[batch.advantages[:, 0] == 0] == 0).all())
    assert vanishes_at_zero_advantage(surrogate) != isinstance(surrogate, KLCovariance)
    assert silent or (isinstance(surrogate, KLCovariance) and surrogate.share == 0.9)


def test_a_batch_without_its_statistic_is_refused():
    batch, totals = batch_of(1), batch_totals(batch_of(1).mask)
    for name in ("m2po", "clip_cov", "kl_cov"):
        with pytest.raises(ValueError, match="needs the statistic of its batch"):
            loss_of(ASKING[name])(batch, totals)
    without = dataclasses.replace(batch, pass_rate=None)
    with pytest.raises(ValueError, match="pass_rate"):
        loss_of(Clip(Elastic(BandKL(0.05))))(without)


WRONG = {
    "threshold": lambda: SecondMomentMask(Unclipped(), 0.0),
    "surrogate": lambda: SecondMomentMask(Fixed(0.2, 0.2)),
    "share must": lambda: KLCovariance(Unclipped(), share=0.0),
    "coefficient": lambda: KLCovariance(Unclipped(), coefficient=0.0),
    "low < high": lambda: ClipCovariance(Unclipped(), low=5.0, high=1.0),
    "inside it": lambda: ClipCovariance(SecondMomentMask(Unclipped())),
    "highest_low": lambda: Balanced(low=0.95),
    "by_advantage": lambda: Elastic(BandKL(0.05), -1.0),
    "cannot be scaled": lambda: Elastic(Balanced()),
    "bounds must be|inner must be": lambda: Elastic(0.05),
}


@pytest.mark.parametrize("match", WRONG)
def test_impossible_settings_are_refused(match):
    with pytest.raises(UserError, match=match):
        WRONG[match]()


def test_a_statistic_can_be_asked_around_another():
    nested = SecondMomentMask(ClipCovariance(Clip(Fixed(0.2, 0.2)), **COVERING))
    batch = batch_of(2)
    assert len(asking_parts(loss_of(nested))) == 2
    limit = loss_of(nested)(batch).interval.high.max()
    assert limit <= 1.2 and math.isfinite(loss_of(nested)(batch).loss.item())
