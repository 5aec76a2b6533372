"""Surrogates and ratios against the formulas of their papers, differentiated by autograd."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bandpo.errors import UserError
from bandpo.loss import (
    BandChi2,
    BandKL,
    BandTV,
    Bounds,
    Capped,
    Clip,
    DualClip,
    DynamicAdaptive,
    Fixed,
    Mask,
    PolicyLoss,
    QuadraticPenalty,
    SequenceMeanTokenMean,
    SequenceRatio,
    Surrogate,
    TokenBatch,
    TokenRatio,
    TruncatedWeight,
    Union,
)

BOUNDS = [
    Fixed(0.2, 0.28),
    BandKL(0.05),
    BandTV(0.05),
    BandChi2(0.05),
    Capped(Union(BandKL(0.05), Fixed(0.2, 0.28)), 10.0),
    DynamicAdaptive(0.16, 0.2),
]
seeds = st.integers(0, 2**31)
every_bounds = st.sampled_from(BOUNDS)


def random_batch(seed: int, sequences: int = 4, tokens: int = 9) -> TokenBatch:
    """Tokens from sure to one in e^12, ratios within and far beyond every trust region."""
    generator = torch.Generator().manual_seed(seed)

    def draw(normal: bool = True) -> Tensor:
        sample = torch.randn if normal else torch.rand
        return sample(sequences, tokens, generator=generator, dtype=torch.float64)

    old_logp = -12 * draw(normal=False) ** 3
    logp = (old_logp + draw()).requires_grad_()
    advantages = draw(normal=False).sub(0.5).mul(3) * (draw(normal=False) > 0.1)
    lengths = torch.randint(1, tokens + 1, (sequences, 1), generator=generator)
    mask = (torch.arange(tokens) < lengths).double()
    return TokenBatch(logp, old_logp, advantages, mask)


def gradient(objective: Tensor, batch: TokenBatch) -> Tensor:
    return torch.autograd.grad((objective * batch.mask).sum(), batch.logp)[0]


def surrogate_gradient(surrogate: Surrogate, batch: TokenBatch) -> Tensor:
    return gradient(surrogate(TokenRatio()(batch), batch).objective, batch)


def plain_ratio(batch: TokenBatch) -> Tensor:
    return batch.logp.exp() / batch.old_logp.exp()


def plain_clip(bounds: Bounds, batch: TokenBatch) -> Tensor:
    """min(r·A, clip(r, low, high)·A) as it stands in the papers."""
    ratio, (low, high) = plain_ratio(batch), bounds(batch.old_logp)
    clipped = torch.minimum(torch.maximum(ratio, low), high)
    return torch.minimum(ratio * batch.advantages, clipped * batch.advantages)


@given(every_bounds, seeds)
def test_clip(bounds, seed):
    batch = random_batch(seed)
    output = Clip(bounds)(TokenRatio()(batch), batch)
    expected = plain_clip(bounds, batch)
    torch.testing.assert_close(output.objective, expected)
    torch.testing.assert_close(gradient(output.objective, batch), gradient(expected, batch))
    removed = (gradient(plain_clip(bounds, batch), batch) == 0) & (batch.advantages != 0)
    binding = (output.binding_high | output.binding_low) & batch.mask.bool()
    assert torch.equal(binding, removed & batch.mask.bool())
    assert (batch.advantages[output.binding_high] > 0).all()
    assert (batch.advantages[output.binding_low] < 0).all()


@given(every_bounds, seeds)
def test_mask_has_the_gradient_of_clip(bounds, seed):
    batch = random_batch(seed)
    torch.testing.assert_close(
        surrogate_gradient(Mask(bounds), batch), surrogate_gradient(Clip(bounds), batch)
    )


@given(seeds, st.sampled_from([1e-3, 0.05, 0.15, 1.0]), st.sampled_from(["kl", "tv"]))
def test_band_has_the_gradient_of_the_divergence_mask(seed, delta, name):
    """DPPO-Binary without a solver: masked where the binary divergence of (token, all others)
    exceeds delta and the step leads outward."""
    batch = random_batch(seed)
    batch.logp.data.clamp_(max=-1e-6)  # a probability above 1 has no divergence
    p, q = batch.old_logp.exp(), batch.logp.exp().detach()
    if name == "tv":
        divergence, bounds = (p - q).abs(), BandTV(delta)
    else:
        rest = (1 - p) * (torch.log1p(-p) - torch.log1p(-q))
        divergence, bounds = p * (p.log() - q.log()) + rest, BandKL(delta)
    outward = torch.where(batch.advantages > 0, q > p, q < p)
    objective = plain_ratio(batch) * batch.advantages * ~(outward & (divergence > delta))
    expected = gradient(objective, batch)
    for surrogate in (Clip(bounds), Mask(bounds)):
        torch.testing.assert_close(surrogate_gradient(surrogate, batch), expected)


@given(every_bounds, seeds, st.sampled_from([1.5, 3.0, 10.0]))
def test_dual_clip(bounds, seed, c):
    """max(min(r·A, clip(r)·A), c·A) for A < 0 (Mastering Complex Control in MOBA Games)."""
    batch = random_batch(seed)
    output = DualClip(Clip(bounds), c)(TokenRatio()(batch), batch)
    pessimistic = plain_clip(bounds, batch)
    floored = torch.maximum(pessimistic, c * batch.advantages)
    expected = torch.where(batch.advantages < 0, floored, pessimistic)
    torch.testing.assert_close(output.objective, expected)
    actual = gradient(output.objective, batch)
    torch.testing.assert_close(actual, gradient(expected, batch))
    negative = batch.advantages < 0
    assert torch.equal(output.binding_high & negative, negative & (plain_ratio(batch) > c))


@given(seeds, st.sampled_from([Fixed(1.0, 4.0), Fixed(0.2, 0.28), BandKL(0.05)]))
def test_truncated_weight_keeps_every_gradient(seed, bounds):
    """CISPO: ∇ = sg(clip(r))·A·∇log π for every token, clipped or not."""
    batch = random_batch(seed)
    low, high = bounds(batch.old_logp)
    weight = torch.minimum(torch.maximum(plain_ratio(batch).detach(), low), high)
    expected = weight * batch.advantages * batch.mask
    torch.testing.assert_close(surrogate_gradient(TruncatedWeight(bounds), batch), expected)


@given(seeds, st.sampled_from([0.1, 0.2, 1.5]))
def test_quadratic_penalty(seed, eps):
    batch = random_batch(seed)
    ratio, a = plain_ratio(batch), batch.advantages
    expected = ratio * a - a.abs() / (2 * eps) * (ratio - 1) ** 2
    output = QuadraticPenalty(eps)(TokenRatio()(batch), batch)
    torch.testing.assert_close(output.objective, expected)
    torch.testing.assert_close(
        surrogate_gradient(QuadraticPenalty(eps), batch), gradient(expected, batch)
    )


@pytest.mark.parametrize("advantage", [2.0, -0.5])
def test_quadratic_penalty_is_stationary_at_the_clip_bound(advantage):
    eps = 0.2
    bound = 1 + eps if advantage > 0 else 1 - eps
    old_logp = torch.full((1, 1), -3.0, dtype=torch.float64)
    logp = (old_logp + torch.tensor(bound, dtype=torch.float64).log()).requires_grad_()
    batch = TokenBatch(logp, old_logp, torch.full_like(old_logp, advantage), old_logp * 0 + 1)
    assert surrogate_gradient(QuadraticPenalty(eps), batch).abs().item() < 1e-12


@given(seeds)
def test_gspo(seed):
    """1/N Σ_i min(s_i·A_i, clip(s_i)·A_i) with s_i = (π(y_i)/π_old(y_i))^(1/|y_i|)."""
    batch = random_batch(seed)
    batch.logp.data.copy_(batch.old_logp + 1e-3 * (batch.logp - batch.old_logp))
    a = batch.advantages[:, 0]
    batch = TokenBatch(batch.logp, batch.old_logp, a[:, None].expand_as(batch.mask), batch.mask)
    loss = PolicyLoss(SequenceRatio(), Clip(Fixed(3e-4, 4e-4)), SequenceMeanTokenMean())(batch).loss
    log_likelihood = ((batch.logp - batch.old_logp) * batch.mask).sum(-1)
    s = (log_likelihood / batch.mask.sum(-1)).exp()
    expected = -torch.minimum(s * a, s.clamp(1 - 3e-4, 1 + 4e-4) * a).mean()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(*(torch.autograd.grad(x, batch.logp)[0] for x in (loss, expected)))


def test_extreme_ratios_stay_finite():
    extremes = torch.tensor([[1e4, -1e4, 100.0, -100.0, 0.0]])
    for ratio in (TokenRatio(), SequenceRatio()):
        logp = extremes.clone().requires_grad_()
        ones = torch.ones_like(extremes)
        batch = TokenBatch(logp, torch.zeros_like(extremes), ones, ones)
        for surrogate in (
            DualClip(Clip(BandKL(0.05))),
            Mask(BandTV(0.05)),
            TruncatedWeight(Fixed(1.0, 4.0)),
            QuadraticPenalty(0.2),
        ):
            objective = surrogate(ratio(batch), batch).objective
            assert objective.isfinite().all()
            assert gradient(objective, batch).isfinite().all()


@pytest.mark.parametrize(
    "build", [lambda: DualClip(Clip(Fixed(0.2, 0.2)), 1.0), lambda: QuadraticPenalty(0.0)]
)
def test_parameters_out_of_range_are_user_errors(build):
    with pytest.raises(UserError):
        build()
