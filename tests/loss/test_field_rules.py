"""The field's rules against their papers' formulas, written here token by token, by autograd."""

import dataclasses
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bandpo.errors import UserError
from bandpo.loss import (
    K3,
    BandKL,
    BandTV,
    BehaviourRatio,
    BySign,
    Clip,
    DualClip,
    Fixed,
    FixedLog,
    GammaWeight,
    GeometricMean,
    GradientPreservingClip,
    KLPlusChiSquared,
    Mask,
    OfBehaviour,
    OffPolicySequenceMask,
    PolicyLoss,
    ReferenceKL,
    SequenceMeanTokenMean,
    SequenceMeanTokenSum,
    SequenceRatio,
    SoftGate,
    SquaredLogRatio,
    TokenBatch,
    TokenMean,
    TokenRatio,
    TrajectoryRatio,
    TruncatedWeight,
    batch_totals,
    debugging,
    vanishes_at_zero_advantage,
)
from bandpo.loss.contracts import check_bounds

SEQUENCES, TOKENS = 6, 7
seeds = st.integers(0, 2**31)
CLIP = Clip(Fixed(0.2, 0.28))
TOPR = BySign(positive=Fixed(0.0, 0.0), negative=Fixed(1.0, 0.0))


def random_batch(seed: int, dtype=torch.float64, spread: float = 0.6) -> TokenBatch:
    """Sequences of one to seven tokens, one of advantage 0; ratios far out on both sides."""
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(5, SEQUENCES, TOKENS, generator=generator, dtype=torch.float64)
    old_logp = -2 * draws[0].abs() - 0.05
    lengths = torch.randint(1, TOKENS + 1, (SEQUENCES, 1), generator=generator)
    advantages = draws[2, :, :1].clone()
    advantages[0] = 0.0
    # Whole sequences drift, or none would be masked.
    drift = draws[4, :, :1]
    batch = {
        "logp": old_logp + spread * (draws[1] + drift),
        "old_logp": old_logp,
        "advantages": advantages.expand(-1, TOKENS),
        "mask": (torch.arange(TOKENS) < lengths).double(),
        "ref_logp": old_logp + 0.3 * draws[3],
        "rollout_logp": old_logp + 0.1 * draws[3].flip(0),
    }
    for name in ("logp", "ref_logp", "rollout_logp"):  # of probabilities, which stay below 1
        batch[name] = batch[name].clamp(max=-1e-3)
    return TokenBatch(**{name: tensor.to(dtype) for name, tensor in batch.items()})


def tokens_of(batch: TokenBatch, i: int) -> list[tuple[Tensor, ...]]:
    """(log π, log π_old, A, log μ) of each token of a sequence."""
    columns = (batch.logp, batch.old_logp, batch.advantages, batch.rollout_logp)
    return [tuple(c[i, t] for c in columns) for t in range(int(batch.mask[i].sum()))]


# Each formula gives the objective of the tokens of a sequence, as the paper has it.


def sapo(sequence):
    for logp, old, a, _ in sequence:
        tau = 1.0 if a > 0 else 1.05
        yield 4 / tau / (1 + torch.exp(-tau * (torch.exp(logp - old) - 1))) * a


def gmpo(sequence, low=lambda old: -0.4, high=lambda old: 0.4):
    total = 0.0
    for logp, old, a, _ in sequence:
        log_r = logp - old
        bound = min(log_r, log_r * 0 + high(old)) if a > 0 else max(log_r, log_r * 0 + low(old))
        total = total + bound
    return [torch.exp(total / len(sequence)) * sequence[0][2]] * len(sequence)


def gmpo_band_tv(sequence):
    """Band-TV's bounds in closed form, 1 ± 0.2/p within [0, 1/p]."""
    return gmpo(
        sequence,
        low=lambda old: torch.log((1 - 0.2 / old.exp()).clamp(min=1e-300)),
        high=lambda old: torch.log(torch.minimum(1 + 0.2 / old.exp(), 1 / old.exp())),
    )


def ce_gppo(sequence):
    for logp, old, a, _ in sequence:
        r = torch.exp(logp - old)
        if a < 0 and r < 0.8:
            yield 0.75 * 0.8 * r / r.detach() * a
        elif a > 0 and r > 1.28:
            yield 1.0 * 1.28 * r / r.detach() * a
        else:
            yield r * a


def vespo(sequence):
    log_w = sum(logp - old for logp, old, *_ in sequence).detach()
    for logp, _, a, _ in sequence:
        k, decay = (2.0, 3.0) if a >= 0 else (3.0, 2.0)
        phi = math.exp(decay) * math.exp(log_w) ** k * math.exp(-decay * math.exp(log_w))
        yield phi * a * logp


def topr(sequence):
    w = torch.exp(sum(logp - old for logp, old, *_ in sequence)).detach()
    for logp, _, a, _ in sequence:
        yield (1.0 if a > 0 else min(float(w), 1.0)) * a * logp


def luspo(sequence):
    s = torch.exp(sum(logp - old for logp, old, *_ in sequence) / len(sequence))
    for _, _, a, _ in sequence:
        yield min(s * a, s.clamp(1 - 2e-3, 1 + 2.5e-3) * a)


def off_policy_mask(sequence):
    drift = sum((mu - logp).detach() for logp, _, _, mu in sequence) / len(sequence)
    for logp, old, a, _ in sequence:
        r = torch.exp(logp - old)
        kept = 0.0 if a < 0 and drift > 0.3 else 1.0
        yield kept * min(r * a, r.clamp(0.8, 1.28) * a)


def prime_rl(sequence):
    for logp, _, a, mu in sequence:
        moved = (logp.exp() - mu.exp()).detach()
        masked = (a > 0 and moved > 0.2) or (a < 0 and moved < -0.2)
        yield torch.exp(logp - mu) * a * (not masked) - 1e-3 * (logp - mu) ** 2


RULES = {
    "sapo": (sapo, TokenRatio(), SoftGate()),
    "gmpo": (gmpo, TokenRatio(), GeometricMean(FixedLog(0.4, 0.4))),
    "gmpo_band_tv": (gmpo_band_tv, TokenRatio(), GeometricMean(BandTV(0.2))),
    "ce_gppo": (ce_gppo, TokenRatio(), GradientPreservingClip(Fixed(0.2, 0.28))),
    "vespo": (vespo, TrajectoryRatio(), GammaWeight()),
    "topr": (topr, TrajectoryRatio(), TruncatedWeight(TOPR)),
    "luspo": (luspo, SequenceRatio(), Clip(Fixed(2e-3, 2.5e-3))),
    "off_policy_mask": (off_policy_mask, TokenRatio(), OffPolicySequenceMask(CLIP, 0.3)),
    "prime_rl": (prime_rl, BehaviourRatio(), SquaredLogRatio(Mask(OfBehaviour(BandTV(0.2))))),
}
AGGREGATES = {
    "sum": (SequenceMeanTokenSum(), lambda values: sum(values)),
    "mean": (SequenceMeanTokenMean(), lambda values: sum(values) / len(values)),
}


def gradient(loss: PolicyLoss, batch: TokenBatch, totals=None) -> tuple[Tensor, Tensor]:
    logp = batch.logp.detach().clone().requires_grad_()
    value = loss(dataclasses.replace(batch, logp=logp), totals).loss
    return value.detach(), torch.autograd.grad(value, logp)[0]


@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("name", RULES)
@settings(max_examples=12)
@given(seed=seeds)
def test_the_objective_and_its_gradient_are_the_papers(name, aggregate, seed):
    formula, ratio, surrogate = RULES[name]
    ours, over_tokens = AGGREGATES[aggregate]
    batch = random_batch(seed)
    if name == "luspo":  # within and around its narrow bounds
        logp = batch.old_logp + 5e-3 * (batch.logp - batch.old_logp)
        batch = dataclasses.replace(batch, logp=logp)
    value, actual = gradient(PolicyLoss(ratio, surrogate, ours), batch)
    logp = batch.logp.clone().requires_grad_()
    moved = dataclasses.replace(batch, logp=logp)
    sequences = [list(formula(tokens_of(moved, i))) for i in range(SEQUENCES)]
    expected = -sum(map(over_tokens, sequences)) / SEQUENCES
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(actual, torch.autograd.grad(expected, logp)[0])
    assert (actual != 0).any()


def test_the_batches_reach_every_case():
    """Masked and kept sequences, both bounds: or the test above would compare nothing."""
    cases = set()
    for seed in range(8):
        batch = random_batch(seed).neutral()
        masked = OffPolicySequenceMask(CLIP, 0.3)(TokenRatio()(batch), batch).objective == 0
        negative = (batch.advantages < 0) & batch.mask.bool()
        cases |= {("masked", bool(x)) for x in masked[negative]}
        for surrogate in (GradientPreservingClip(Fixed(0.2, 0.28)), GeometricMean(BandTV(0.2))):
            interval = surrogate(TokenRatio()(batch), batch).interval
            ratio = TokenRatio()(batch)
            cases |= {("above", bool(x)) for x in (ratio > interval.high)[batch.advantages > 0]}
            cases |= {("below", bool(x)) for x in (ratio < interval.low)[batch.advantages < 0]}
    assert cases == set(itertools.product(("masked", "above", "below"), (True, False)))


def test_the_gradient_weights_in_closed_form():
    """∂objective/∂log π of single tokens, differentiated by hand."""
    r, a = torch.tensor([[0.5, 0.9, 1.0, 1.5, 4.0]], dtype=torch.float64), 2.0

    def weight(surrogate, advantage, ratio=None):
        old = torch.full_like(r, -3.0).T
        full = torch.full_like(old, advantage)
        batch = TokenBatch(old + r.log().T, old, full, torch.ones_like(old))
        loss = PolicyLoss(ratio or TokenRatio(), surrogate, SequenceMeanTokenSum())
        return -gradient(loss, batch)[1].T * len(old)

    sigmoid = 1 / (1 + (-(r - 1)).exp())
    torch.testing.assert_close(weight(SoftGate(1.0, 2.0), a), 4 * sigmoid * (1 - sigmoid) * r * a)
    sigmoid = 1 / (1 + (-2 * (r - 1)).exp())
    torch.testing.assert_close(weight(SoftGate(1.0, 2.0), -a), -4 * sigmoid * (1 - sigmoid) * r * a)
    kept = weight(GradientPreservingClip(Fixed(0.2, 0.2), 0.5, 0.9), a)
    torch.testing.assert_close(kept, a * torch.where(r > 1.2, 0.9 * 1.2, r))
    kept = weight(GradientPreservingClip(Fixed(0.2, 0.2), 0.5, 0.9), -a)
    torch.testing.assert_close(kept, -a * torch.where(r < 0.8, 0.5 * 0.8, r))
    phi = (r * (1 - r).exp()) ** 3 / r  # e^3·W^2·e^(−3W), written otherwise
    torch.testing.assert_close(weight(GammaWeight(), a, TrajectoryRatio()), a * phi)
    pulled = weight(SquaredLogRatio(Clip(Fixed(1.0, 100.0)), 0.25), a)
    torch.testing.assert_close(pulled, a * r - 0.5 * r.log())
    assert (
        weight(GradientPreservingClip(Fixed(0.2, 0.2), 0.0, 0.0), a)[r.expand(1, 5) > 1.2] == 0
    ).all()


def test_without_its_scale_the_gradient_preserving_clip_is_the_clip():
    for seed in range(5):
        batch = random_batch(seed)
        zero = GradientPreservingClip(BandKL(0.05), 0.0, 0.0)
        results = [
            gradient(PolicyLoss(TokenRatio(), surrogate, TokenMean()), batch)[1]
            for surrogate in (zero, Clip(BandKL(0.05)))
        ]
        torch.testing.assert_close(*results)
        outputs = [s(TokenRatio()(batch), batch) for s in (zero, Clip(BandKL(0.05)))]
        assert torch.equal(outputs[0].binding_high, outputs[1].binding_high)
        assert torch.equal(outputs[0].binding_low, outputs[1].binding_low)


@pytest.mark.parametrize("inner", [CLIP, SoftGate(), DualClip(Mask(BandKL(0.05)))], ids=str)
def test_the_sequence_mask_goes_around_any_surrogate(inner):
    batch = random_batch(3)
    plain, masked = (
        gradient(PolicyLoss(TokenRatio(), s, SequenceMeanTokenSum()), batch)[1]
        for s in (inner, OffPolicySequenceMask(inner, 0.1))
    )
    mean = ((batch.rollout_logp - batch.logp) * batch.mask).sum(-1) / batch.mask.sum(-1)
    dropped = (mean > 0.1) & (batch.advantages[:, 0] < 0)
    assert dropped.any() and not dropped.all()
    assert torch.equal(masked, torch.where(dropped[:, None], 0.0, plain))
    # Without the engine's log-probabilities the drift is taken from π_old.
    alone = dataclasses.replace(batch, rollout_logp=None)
    same = dataclasses.replace(batch, rollout_logp=batch.old_logp)
    loss = PolicyLoss(TokenRatio(), OffPolicySequenceMask(inner, 0.1), SequenceMeanTokenSum())
    assert torch.equal(gradient(loss, alone)[1], gradient(loss, same)[1])


# --- The reference KL ---------------------------------------------------------------------------


def enumerated(estimate, logits: Tensor, ref_logits: Tensor) -> Tensor:
    """∇ of E over tokens of π_old of an estimate (log π, log π_old, log π_ref), by enumeration."""
    logp, ref = logits.log_softmax(-1), ref_logits.log_softmax(-1)
    old = logp.detach() if estimate[1] is None else estimate[1]
    values = estimate[0](logp, old, ref)
    return torch.autograd.grad((old.exp() * values).sum(), logits)[0]


def kl_of(logits: Tensor, ref_logits: Tensor) -> Tensor:
    logp, ref = logits.log_softmax(-1), ref_logits.log_softmax(-1)
    return (logp.exp() * (logp - ref)).sum()


@pytest.fixture
def policies() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits, ref, move = torch.randn(3, 9, generator=generator, dtype=torch.float64)
    return logits.requires_grad_(), ref, (logits.detach() + 0.5 * move).log_softmax(-1)


def reference_term(kl: ReferenceKL, logp: Tensor, old: Tensor, ref: Tensor) -> Tensor:
    ones = torch.ones_like(old)
    batch = TokenBatch(logp[None], old[None], 0 * ones[None], ones[None], ref_logp=ref[None])
    return kl(batch)[0]


def test_the_unbiased_estimate_has_the_gradient_of_the_kl(policies):
    """Also off policy, where samples come from π_old; k3 alone has it not even on policy."""
    logits, ref, old = policies
    exact = torch.autograd.grad(kl_of(logits, ref), logits)[0]
    unbiased = ReferenceKL(1.0, K3(math.inf), TokenRatio())
    for samples_of in (None, old):
        found = enumerated(
            (lambda *three: reference_term(unbiased, *three), samples_of), logits, ref
        )
        torch.testing.assert_close(found, exact, rtol=1e-12, atol=1e-12)
        plain = ReferenceKL(1.0, K3(math.inf))
        biased = enumerated(
            (lambda *three, k=plain: reference_term(k, *three), samples_of), logits, ref
        )
        assert not torch.allclose(biased, exact, rtol=0.1)
    with torch.no_grad():  # the value is unbiased too
        logp, log_ref = logits.log_softmax(-1), ref.log_softmax(-1)
        mean = (old.exp() * reference_term(unbiased, logp, old, log_ref)).sum()
        torch.testing.assert_close(mean, kl_of(logits, ref))


def test_kl_plus_chi_squared_has_the_gradient_of_both(policies):
    logits, ref, _ = policies
    probabilities, log_ref = logits.softmax(-1), ref.log_softmax(-1)
    chi = (log_ref.exp() * (probabilities / log_ref.exp() - 1) ** 2).sum() / 2
    exact = torch.autograd.grad(kl_of(logits, ref) + chi, logits)[0]
    kl = ReferenceKL(1.0, KLPlusChiSquared())
    found = enumerated((lambda *three: reference_term(kl, *three), None), logits, ref)
    torch.testing.assert_close(found, exact, rtol=1e-12, atol=1e-12)
    u = torch.tensor([0.7], dtype=torch.float64)
    value = KLPlusChiSquared()(u - 1, 0 * u - 1)
    assert value.item() == pytest.approx(math.exp(0.7) - 1 + 0.245)


def test_the_ratio_of_a_reference_kl_weighs_it_alone():
    batch = random_batch(4, spread=0.2)
    clip = PolicyLoss(TokenRatio(), CLIP, TokenMean())
    kl = dataclasses.replace(clip, reference_kl=ReferenceKL(0.5, K3(), TokenRatio()))
    logp = batch.logp.clone().requires_grad_()
    x, r = batch.ref_logp - logp, (logp - batch.old_logp).exp()
    term = (r * (x.exp() - x - 1) * batch.mask).sum() / batch.mask.sum()
    (expected,) = torch.autograd.grad(term, logp)
    plain, both = (gradient(loss, batch)[1] for loss in (clip, kl))
    torch.testing.assert_close(both, plain + 0.5 * expected)
    with pytest.raises(UserError, match="ReferenceKL: ratio must be a ratio"):
        ReferenceKL(0.5, K3(), BandKL(0.05))


# --- What every part promises ---------------------------------------------------------------------


LOSSES = {
    name: PolicyLoss(ratio, surrogate, SequenceMeanTokenMean())
    for name, (_, ratio, surrogate) in RULES.items()
} | {
    "unbiased_kl": PolicyLoss(
        TokenRatio(), CLIP, TokenMean(), ReferenceKL(0.1, K3(), TokenRatio())
    ),
    "kl_chi2": PolicyLoss(TokenRatio(), CLIP, TokenMean(), ReferenceKL(0.1, KLPlusChiSquared())),
}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=list(LOSSES))


def mapped(batch: TokenBatch, change) -> TokenBatch:
    tensors = {k: v for k, v in vars(batch).items() if isinstance(v, Tensor)}
    return dataclasses.replace(batch, **{name: change(v) for name, v in tensors.items()})


@every_loss
@settings(max_examples=8)
@given(seed=seeds, cuts=st.sets(st.integers(1, SEQUENCES - 1)), padding=st.integers(0, 3))
def test_any_split_and_padding_gives_the_loss_of_the_batch(loss, seed, cuts, padding):
    batch = random_batch(seed)
    totals = batch_totals(batch.mask)
    value, whole = gradient(loss, batch)
    pieces = []
    for start, stop in itertools.pairwise([0, *sorted(cuts), SEQUENCES]):
        part = mapped(
            batch,
            lambda t, rows=slice(start, stop): torch.nn.functional.pad(t[rows], (0, padding)),
        )
        pieces.append(gradient(loss, part, totals))
    torch.testing.assert_close(sum(v for v, _ in pieces), value)
    torch.testing.assert_close(torch.cat([g[:, :TOKENS] for _, g in pieces]), whole)


@every_loss
@pytest.mark.parametrize("garbage", [1e30, -1e30, math.inf, -math.inf, math.nan])
def test_masked_values_change_nothing(loss, garbage):
    batch = random_batch(1, torch.float32)
    dirty = mapped(batch, lambda t: torch.where(batch.mask > 0, t, garbage))
    dirty = dataclasses.replace(dirty, mask=batch.mask)
    for actual, expected in zip(gradient(loss, dirty), gradient(loss, batch), strict=True):
        assert torch.equal(actual, expected)


@every_loss
def test_bfloat16_is_computed_in_float32(loss):
    batch = random_batch(2, torch.bfloat16)
    output, expected = loss(batch), loss(mapped(batch, lambda t: t.float()))
    assert output.loss.dtype == torch.float32
    assert torch.equal(output.loss, expected.loss)


@every_loss
def test_float32_agrees_with_float64(loss):
    double = random_batch(5)
    double = mapped(double, lambda t: t.float().double())
    expected = gradient(loss, double)[1]
    actual = gradient(loss, mapped(double, lambda t: t.float()))[1]
    torch.testing.assert_close(actual.double(), expected, rtol=2e-5, atol=1e-7)


@every_loss
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_extreme_log_ratios_stay_finite(loss, advantage):
    extremes = torch.tensor([[1e4, -1e4, 100.0, -100.0, 25.0], [0.0, 40.0, 40.0, 40.0, -3e38]])
    zeros, ones = torch.zeros_like(extremes), torch.ones_like(extremes)
    batch = TokenBatch(extremes, zeros, advantage * ones, ones, zeros, zeros)
    value, found = gradient(loss, batch)
    assert value.isfinite() and found.isfinite().all()
    output = loss(batch)
    assert output.interval.low.isfinite().all() and output.interval.high.isfinite().all()


@pytest.mark.parametrize("name", RULES)
def test_samples_of_advantage_0_learn_nothing_where_it_is_said(name):
    _, ratio, surrogate = RULES[name]
    declared = vanishes_at_zero_advantage(surrogate) and vanishes_at_zero_advantage(ratio)
    assert declared == (name != "prime_rl")
    loss = PolicyLoss(ratio, surrogate, SequenceMeanTokenSum())
    assert loss.vanishes_at_zero_advantage == declared
    batch = random_batch(6)
    found = gradient(loss, batch)[1]
    assert bool((found[0] == 0).all()) == declared
    if declared:  # and no other sample's gradient depends on it
        rest = mapped(batch, lambda t: t[1:])
        assert torch.equal(gradient(loss, rest, batch_totals(batch.mask))[1], found[1:])


def test_a_wrapper_says_what_its_surrogate_says():
    assert vanishes_at_zero_advantage(OffPolicySequenceMask(CLIP))
    assert not vanishes_at_zero_advantage(OffPolicySequenceMask(SquaredLogRatio(CLIP)))
    assert not vanishes_at_zero_advantage(DualClip(SquaredLogRatio(CLIP)))


@every_loss
def test_a_largest_weight_weighs_by_the_gradients_own_weight(loss):
    """Truncation changes nothing where the weight is below it, and scales the rest down to it."""
    batch = dataclasses.replace(random_batch(7), ref_logp=None)
    loss = dataclasses.replace(loss, reference_kl=None)
    capped = dataclasses.replace(loss, max_weight=1.1)
    neutral = batch.neutral()
    output = loss.surrogate(loss.ratio(neutral), neutral)
    weight = loss.ratio(neutral) if output.weight is None else output.weight
    share = (1.1 / weight).clamp(max=1.0)
    value = -(
        output.objective * share * loss.aggregate.weights(batch.mask, batch_totals(batch.mask))
    )
    torch.testing.assert_close(capped(batch).loss, value.sum())


@every_loss
def test_parts_keep_their_contracts_and_debugging_looks_at_the_batch(loss):
    loss.check()
    batch = random_batch(8)
    old = batch.old_logp
    batch = dataclasses.replace(batch, logp=old, ref_logp=old, rollout_logp=old)
    with debugging():
        with pytest.raises(UserError, match="log-probabilities"):
            loss(dataclasses.replace(batch, logp=old + 50))
        assert loss(batch).loss.isfinite()


@every_loss
def test_runs_without_reading_a_value(loss):
    batch = random_batch(9)
    assert loss(batch.to("meta"), batch_totals(batch.mask)).loss.shape == ()


@pytest.mark.parametrize("name", ["gmpo_band_tv", "vespo", "topr", "prime_rl"])
def test_compiles_as_one_graph(name):
    batch, loss = random_batch(9), LOSSES[name]
    totals = batch_totals(batch.mask)
    torch.compiler.reset()
    compiled = torch.compile(lambda b: loss(b, totals).loss, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(batch), loss(batch, totals).loss)


def test_the_new_bounds():
    p = torch.tensor([[0.01, 0.5, 0.9]])
    low, high = FixedLog(0.4, 0.1)(p.log())
    torch.testing.assert_close(low.log(), torch.full_like(p, -0.4))
    torch.testing.assert_close(high.log(), torch.full_like(p, 0.1))
    bounds = BySign(positive=BandKL(0.05), negative=Fixed(0.3, 0.1))
    batch = TokenBatch(p.log(), p.log(), torch.tensor([[1.0, -1.0, 0.0]]), torch.ones_like(p))
    found = bounds.for_batch(batch)(p.log())
    band, fixed = BandKL(0.05)(p.log()), Fixed(0.3, 0.1)(p.log())
    for side in ("low", "high"):
        expected = getattr(band, side).clone()
        expected[0, 1] = getattr(fixed, side)[0, 1]
        assert torch.equal(getattr(found, side), expected)
    sampled = dataclasses.replace(batch, rollout_logp=p.log() - 0.3)
    found = OfBehaviour(BandKL(0.05)).for_batch(sampled)(p.log())
    assert torch.equal(found.high, BandKL(0.05)(p.log() - 0.3).high)
    for unresolved in (bounds, OfBehaviour(BandKL(0.05))):
        check_bounds(unresolved)
        with pytest.raises(ValueError, match="for_batch"):
            unresolved(p.log())


@pytest.mark.parametrize(
    "build",
    [
        lambda: SoftGate(0.0),
        lambda: SoftGate(1.0, math.nan),
        lambda: GradientPreservingClip(Fixed(0.2, 0.2), -0.1),
        lambda: GradientPreservingClip(CLIP),
        lambda: GeometricMean(CLIP),
        lambda: GammaWeight((2.0,)),
        lambda: GammaWeight("23"),
        lambda: GammaWeight(negative=(3.0, 0.0)),
        lambda: OffPolicySequenceMask(Fixed(0.2, 0.2)),
        lambda: OffPolicySequenceMask(CLIP, -1.0),
        lambda: SquaredLogRatio(Clip),
        lambda: SquaredLogRatio(CLIP, 0.0),
        lambda: FixedLog(-0.1, 0.4),
        lambda: BySign(Fixed(0.2, 0.2), CLIP),
    ],
)
def test_parameters_out_of_range_and_misplaced_parts_are_user_errors(build):
    with pytest.raises(UserError):
        build()
