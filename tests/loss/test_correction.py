"""Corrections by name against the definitions of those who named them, in Python floats."""

import dataclasses
import math

import pytest
import torch

from bandpo.config.rollout_correction import AUTO, NAMES
from bandpo.errors import UserError
from bandpo.loss import (
    KL,
    Accept,
    BandKL,
    Clip,
    DiscardByDivergence,
    GeometricMismatch,
    LossDiagnostics,
    PolicyLoss,
    ReverseKL,
    TokenBatch,
    TokenMean,
    TokenMismatch,
    TokenRatio,
    batch_totals,
)
from bandpo.loss.correction import PRESETS
from bandpo.loss.divergence import binary_divergence

ON = [name for name in PRESETS if name != "none"]


def three_policies(seed: int, spread: float, sequences: int = 40, tokens: int = 12) -> TokenBatch:
    """Behaviour, old and new policy at different distances; padding holds what must not count."""
    generator = torch.Generator().manual_seed(seed)

    def normal() -> torch.Tensor:
        return torch.randn(sequences, tokens, generator=generator, dtype=torch.float64)

    old = -normal().abs() * 2 - 0.01
    lengths = torch.randint(1, tokens + 1, (sequences, 1), generator=generator)
    mask = (torch.arange(tokens) < lengths).double()
    return TokenBatch(
        logp=torch.where(mask > 0, old + 0.2 * normal(), -3.0),
        old_logp=torch.where(mask > 0, old, -5.0),
        advantages=normal()[:, :1].expand(-1, tokens),
        mask=mask,
        rollout_logp=torch.where(mask > 0, (old + spread * normal()).clamp(max=-1e-6), -0.1),
    )


def binary_kl(p: float, q: float) -> float:
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def weights_by_hand(name: str, old: list[float], rollout: list[float]) -> list[float]:
    """The weights of one sequence's tokens."""
    x = [a - b for a, b in zip(old, rollout, strict=True)]
    w, whole = [math.exp(value) for value in x], math.exp(sum(x))
    match name:
        case "token_tis":
            return [min(value, 2.0) for value in w]
        case "sequence_tis":
            return [min(whole, 2.0)] * len(w)
        case "sequence_mask":
            return [whole if whole <= 3.0 else 0.0] * len(w)
        case "icepop":
            return [value if 0.5 <= value <= 5.0 else 0.0 for value in w]
        case "geometric_mask":
            mean = math.exp(sum(x) / len(x))
            return [1.0 if 0.999 <= mean <= 1.002 else 0.0] * len(w)
        case "kpop":
            pairs = [(math.exp(a), math.exp(b)) for a, b in zip(old, rollout, strict=True)]
            far = [max(binary_kl(p, q), binary_kl(q, p)) for p, q in pairs]
            return [value if kl <= 2.0 else 0.0 for value, kl in zip(w, far, strict=True)]
    raise AssertionError(name)


def by_hand(name: str, batch: TokenBatch) -> torch.Tensor:
    """The weights [B, T], 0 without a token."""
    found = torch.zeros_like(batch.mask)
    for row, (old, rollout) in enumerate(zip(batch.old_logp, batch.rollout_logp, strict=True)):
        length = int(batch.mask[row].sum())
        values = weights_by_hand(name, old[:length].tolist(), rollout[:length].tolist())
        found[row, :length] = torch.tensor(values, dtype=torch.float64)
    return found


def test_every_name_of_the_configuration_is_a_preset():
    assert {*NAMES} - {AUTO} == PRESETS.keys()


# Spreads at which each preset treats some tokens and leaves others alone.
SPREADS = {"geometric_mask": 3e-3, "kpop": 3.0}


@pytest.mark.parametrize("name", ON)
def test_a_preset_is_what_its_name_means_elsewhere(name):
    batch = three_policies(0, SPREADS.get(name, 0.7))
    expected = by_hand(name, batch)
    torch.testing.assert_close(PRESETS[name](batch.neutral()) * batch.mask, expected)
    raw = (batch.old_logp - batch.rollout_logp).exp()[batch.mask.bool()]
    found = expected[batch.mask.bool()]
    if name.endswith("tis"):
        assert (found == 2).any() and (found < 2).any()
    else:
        assert (found == 0).any() and (found > 0).any()
    if name == "geometric_mask":
        assert set(found.tolist()) == {0.0, 1.0} and not torch.allclose(raw, torch.ones_like(raw))


@pytest.mark.parametrize("name", ON)
def test_the_gradient_is_that_of_three_policies(name):
    """−Σ w·min(r·A, clip(r)·A)/N, r = new/old and w of old/behaviour."""
    batch = three_policies(1, SPREADS.get(name, 0.5))
    bounds = BandKL(0.05)
    interval = bounds(batch.old_logp)
    weights, expected = by_hand(name, batch), torch.zeros_like(batch.mask)
    value, clipped = 0.0, 0
    for i, j in batch.mask.nonzero().tolist():
        r = math.exp(batch.logp[i, j] - batch.old_logp[i, j])
        a, w = batch.advantages[i, j].item(), weights[i, j].item()
        low, high = (bound[i, j].item() for bound in interval)
        inside = not (a > 0 and r > high) and not (a < 0 and r < low)
        clipped += not inside
        value -= w * min(r * a, min(max(r, low), high) * a)
        expected[i, j] = -w * r * a * inside
    assert clipped > 5
    logp = batch.logp.clone().requires_grad_()
    loss = PolicyLoss(TokenRatio(), Clip(bounds), TokenMean(), correction=PRESETS[name])
    output = loss(dataclasses.replace(batch, logp=logp))
    output.loss.backward()
    count = batch.mask.sum()
    torch.testing.assert_close(output.loss.item(), value / count.item())
    torch.testing.assert_close(logp.grad, expected / count)
    # Neither old nor behaviour policy can be left out of it.
    behaviour = dataclasses.replace(batch, old_logp=batch.rollout_logp)
    two = torch.autograd.grad(
        loss(dataclasses.replace(behaviour, logp=logp)).loss, logp, allow_unused=True
    )[0]
    assert not torch.allclose(two, expected / count)


def test_both_binary_kls_are_those_of_the_divergences():
    p, q = torch.rand(2, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pairs = list(zip(p.tolist(), q.tolist(), strict=True))
    # KL(π_old ‖ π) and KL(π ‖ π_old) of new probabilities p and old ones q.
    for divergence, expected in (
        (KL(), [binary_kl(b, a) for a, b in pairs]),
        (ReverseKL(), [binary_kl(a, b) for a, b in pairs]),
    ):
        found = binary_divergence(divergence, p.log(), q.log())
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_a_likely_token_is_judged_by_what_is_left_of_it():
    """A fall from 0.9999 to 0.9 has a ratio near 1, and takes 0.1 to what had 0.0001."""
    old = torch.tensor([[0.9, 1e-4, 1.0]]).log()
    rollout = torch.tensor([[0.9999, 3e-4, 0.999999]]).log()
    ones = torch.ones_like(old)
    batch = TokenBatch(logp=old, old_logp=old, advantages=ones, mask=ones, rollout_logp=rollout)
    narrow = DiscardByDivergence(0.1)(batch)
    assert narrow[0, 0] == 0 and narrow[0, 1] == pytest.approx(1 / 3)
    assert narrow[0, 2] == pytest.approx(1.0, abs=1e-5)  # rounded to 1: no infinite divergence
    assert (PRESETS["icepop"](batch) > 0).tolist() == [[True, False, True]]


def test_limits_that_make_no_sense_are_refused():
    for build in (
        lambda: Accept(TokenMismatch(), 0.9),
        lambda: Accept(GeometricMismatch(), 2.0, 1.1),
        lambda: DiscardByDivergence(0.0),
    ):
        with pytest.raises(UserError):
            build()


@pytest.mark.parametrize("name", ON)
def test_metrics_count_what_the_correction_masks(name):
    batch = three_policies(2, SPREADS.get(name, 0.7))
    loss = PolicyLoss(TokenRatio(), Clip(BandKL(0.05)), TokenMean(), correction=PRESETS[name])
    totals, halves = batch_totals(batch.mask), LossDiagnostics()
    for rows in (slice(0, 13), slice(13, None)):  # as micro-batches, or ranks
        parts = {
            field.name: value[rows]
            for field in dataclasses.fields(batch)
            if isinstance(value := getattr(batch, field.name), torch.Tensor)
        }
        half = LossDiagnostics()
        half.update(loss(TokenBatch(**parts), totals))
        halves.merge(half)
    found, kept = halves.metrics(), batch.mask.bool()
    x = (batch.old_logp - batch.rollout_logp)[kept]
    masked = (by_hand(name, batch)[kept] == 0).double().mean().item()
    assert found["mismatch/masked_frac"] == pytest.approx(masked)
    assert (masked == 0) == name.endswith("tis")
    assert found["mismatch/kl"] == pytest.approx(-x.mean().item())
    assert found["mismatch/k3"] == pytest.approx((x.exp() - x - 1).mean().item())
    largest = ((batch.old_logp - batch.rollout_logp) * batch.mask).sum(-1).exp().max().item()
    assert found["mismatch/sequence_weight_max"] == pytest.approx(largest)
