"""The entropy bonus and sample weights in a loss, the floor's controller, statistics of a batch."""

import dataclasses
import pickle

import pytest
import torch
from asking_parts import AboveMean, QuantileMask

from bandpo.errors import UserError
from bandpo.loss import (
    BandKL,
    BatchTotals,
    Clip,
    Compiled,
    DualClip,
    EntropyBonus,
    EntropyFloor,
    Fixed,
    PolicyLoss,
    ReferenceKL,
    SequenceMeanTokenMean,
    TokenBatch,
    TokenMean,
    TokenRatio,
    Total,
    Values,
)
from bandpo.loss.entropy import has_entropy_gradient
from bandpo.loss.statistic import asking_parts, merged, with_statistics

LOSS = PolicyLoss(TokenRatio(), Clip(Fixed(0.2, 0.2)), SequenceMeanTokenMean(), ReferenceKL(0.1))
TOTALS = BatchTotals(sequences=10, tokens=40)


def batch_of(**changes) -> TokenBatch:
    generator = torch.Generator().manual_seed(0)
    old, gap = -torch.rand(2, 4, 5, generator=generator) - 0.1
    mask = torch.ones(4, 5)
    mask[1, 3:] = mask[3] = 0
    values = {
        "logp": (old + 0.4 * gap).requires_grad_(),
        "old_logp": old,
        "advantages": torch.tensor([1.0, -1.0, 0.0, 2.0])[:, None].expand(4, 5),
        "mask": mask,
        "ref_logp": old - 0.2,
        "new_entropy": torch.rand(4, 5, generator=generator).requires_grad_(),
    }
    return TokenBatch(**{**values, **changes})


@pytest.mark.parametrize("aggregate", [TokenMean(), SequenceMeanTokenMean()])
def test_the_bonus_is_aggregated_as_the_loss_is(aggregate):
    batch = batch_of()
    plain = dataclasses.replace(LOSS, aggregate=aggregate)
    bonus = dataclasses.replace(plain, entropy=EntropyBonus(0.3))
    weights = aggregate.weights(batch.mask, TOTALS)
    difference = plain(batch, TOTALS).loss - bonus(batch, TOTALS).loss
    torch.testing.assert_close(difference, 0.3 * (weights * batch.new_entropy).sum())
    (gradient,) = torch.autograd.grad(bonus(batch, TOTALS).loss, batch.new_entropy)
    torch.testing.assert_close(gradient, -0.3 * weights)
    assert (gradient[2] != 0).all() and (gradient[3] == 0).all()  # advantage 0; no token


def test_samples_of_advantage_0_learn_from_a_bonus_alone():
    plain = dataclasses.replace(LOSS, reference_kl=None)
    assert plain.vanishes_at_zero_advantage and not has_entropy_gradient(plain)
    for bonus, active in ((EntropyBonus(0.1), True), (EntropyBonus(0.0, floor=1.0), False)):
        loss = dataclasses.replace(plain, entropy=bonus)
        assert loss.vanishes_at_zero_advantage == (not active)
        assert has_entropy_gradient(loss) == active
    assert not has_entropy_gradient(lambda batch, totals: None)


def test_an_inactive_bonus_changes_no_bit_and_reads_no_entropy():
    batch = batch_of(new_entropy=None)
    found = dataclasses.replace(LOSS, entropy=EntropyBonus(0.0))(batch, TOTALS).loss
    assert torch.equal(found, LOSS(batch, TOTALS).loss)
    with pytest.raises(ValueError, match="new_entropy"):
        dataclasses.replace(LOSS, entropy=EntropyBonus(0.1))(batch, TOTALS)


def test_compiled_bounds_take_a_bonus():
    plain = dataclasses.replace(LOSS, entropy=EntropyBonus(0.3))
    found = []
    for bounds in (BandKL(0.05), Compiled(BandKL(0.05))):
        batch = batch_of()
        loss = dataclasses.replace(plain, surrogate=DualClip(Clip(bounds)))(batch, TOTALS).loss
        found.append([loss, *torch.autograd.grad(loss, (batch.logp, batch.new_entropy))])
    for eager, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, eager, atol=1e-6, rtol=1e-5)


def test_a_weight_multiplies_all_of_a_samples_value():
    weight = torch.tensor([2.0, 0.5, 1.0, 7.0])[:, None].expand(4, 5)
    loss = dataclasses.replace(LOSS, entropy=EntropyBonus(0.3))
    batch, weighted = batch_of(), batch_of(weight=weight)
    inputs = (weighted.logp, weighted.new_entropy)
    found = torch.autograd.grad(loss(weighted, TOTALS).loss, inputs)
    plain = torch.autograd.grad(loss(batch, TOTALS).loss, (batch.logp, batch.new_entropy))
    for mine, wanted in zip(found, plain, strict=True):
        torch.testing.assert_close(mine, wanted * weight)
    ones = batch_of(weight=torch.ones(4, 5))
    assert torch.equal(loss(ones, TOTALS).loss, loss(batch, TOTALS).loss)


@pytest.mark.parametrize(
    "wrong",
    [
        {"coefficient": -0.1},
        {"floor": -1.0},
        {"floor": 1.0, "increment": 0.0},
        {"floor": 1.0, "coefficient": 0.1, "maximum": 0.05},
    ],
)
def test_bonuses_that_mean_nothing_are_refused(wrong):
    with pytest.raises(UserError, match="EntropyBonus"):
        EntropyBonus(**wrong)


def test_the_coefficient_follows_the_entropy():
    """Skywork-OR1: c ± Δ, in use while the entropy is at most the target."""
    state = EntropyFloor.of(EntropyBonus(0.01, floor=0.2, increment=0.1, maximum=0.25))
    used = []
    for entropy in (0.5, 0.19, 0.1, 0.1, 0.2, 0.3, 0.1, 0.3, 0.3, 0.3):
        used.append(state.current.coefficient)
        state = state.after(entropy)
    # It rises from 0.01 by 0.1 to 0.25; above the floor it is 0.01 at once, and c falls meanwhile.
    assert used == pytest.approx([0.01, 0.01, 0.11, 0.21, 0.25, 0.15, 0.01, 0.15, 0.01, 0.01])
    assert state.raised == 0.01


# --- Statistics --------------------------------------------------------------------------------

MASKED = dataclasses.replace(
    LOSS, surrogate=DualClip(QuantileMask(Clip(Fixed(0.2, 0.2)))), correction=AboveMean()
)


def test_parts_are_found_wherever_they_are_and_given_theirs():
    assert [type(part) for part in asking_parts(MASKED)] == [QuantileMask, AboveMean]
    assert asking_parts(LOSS) == [] and with_statistics(LOSS, []) is LOSS
    values = Values(torch.arange(10.0))
    informed = with_statistics(MASKED, [values, Total(torch.tensor([-6.0, 3.0]))])
    assert informed.surrogate.surrogate.limit == 8.5
    assert informed.correction.mean == -2.0
    assert MASKED.surrogate.surrogate.limit is None  # unchanged


def test_the_batch_is_the_whole_where_no_totals_are_given():
    batch = batch_of()
    gaps = (batch.logp - batch.old_logp).abs()[batch.mask.bool()]
    expected = with_statistics(
        MASKED,
        [
            Values(gaps),
            Total(torch.stack([(batch.old_logp * batch.mask).sum(), batch.mask.sum()])),
        ],
    )
    totals = BatchTotals(sequences=3, tokens=13)
    assert torch.equal(MASKED(batch).loss, expected(batch, totals).loss)
    with pytest.raises(ValueError, match="needs the statistic"):
        MASKED(batch, totals)


def test_a_loss_of_ones_own_around_ours_adds_its_term_once():
    class Bonus(PolicyLoss):
        def __call__(self, batch, totals=None):
            output = super().__call__(batch, totals)
            return dataclasses.replace(output, loss=output.loss + 100)

    fields = {f.name: getattr(MASKED, f.name) for f in dataclasses.fields(MASKED)}
    batch = batch_of()
    torch.testing.assert_close(Bonus(**fields)(batch).loss, MASKED(batch).loss + 100)


def test_statistics_merge_in_any_order_and_travel():
    pieces = torch.rand(3, 7)
    for order in ((0, 1, 2), (2, 0, 1)):
        parts = [[Values(pieces[i]), Total(pieces[i])] for i in order]
        values, total = merged(pickle.loads(pickle.dumps(parts)))
        assert torch.equal(values.value, pieces.flatten().sort().values)
        torch.testing.assert_close(total.value, pieces.double().sum(0))
