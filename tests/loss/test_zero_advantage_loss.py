"""A loss that says that samples of advantage 0 make no difference has no gradient for them."""

import dataclasses

import pytest
import torch

from bandpo import loss as parts
from bandpo.loss import (
    Accept,
    BandKL,
    Clip,
    Discard,
    DiscardByDivergence,
    DualClip,
    Fixed,
    GeometricMismatch,
    Mask,
    PolicyLoss,
    QuadraticPenalty,
    ReferenceKL,
    SequenceMismatch,
    SequenceRatio,
    TokenBatch,
    TokenMean,
    TokenMismatch,
    TokenRatio,
    Truncate,
    TruncatedWeight,
    vanishes_at_zero_advantage,
)
from bandpo.types import BatchTotals

ROWS, TOKENS = 6, 9
TOTALS = BatchTotals(ROWS, ROWS * TOKENS)
RATIOS = [TokenRatio(), SequenceRatio()]
AGGREGATES = [
    TokenMean(),
    parts.SequenceMeanTokenMean(),
    parts.SequenceMeanTokenSum(),
    parts.ConstantNorm(50),
]
SURROGATES = [
    *(kind(bounds) for kind in (Clip, Mask, TruncatedWeight) for bounds in (Fixed(0.2, 0.2),)),
    Clip(BandKL(parts.EntropyRadius(0.02, 0.1))),
    Clip(parts.DynamicAdaptive(0.16, 0.2)),
    DualClip(Clip(parts.Mixed(Fixed(0.2, 0.2), BandKL(0.05)))),
    QuadraticPenalty(0.2),
]
CORRECTIONS = [
    None,
    Truncate(TokenMismatch()),
    Truncate(SequenceMismatch()),
    Discard(TokenMismatch()),
    Discard(SequenceMismatch()),
    Accept(GeometricMismatch()),
    DiscardByDivergence(0.01),
]


def gradient_of(loss: PolicyLoss, rows: torch.Tensor) -> torch.Tensor:
    """Of the log-probabilities of these rows, of which every other has advantage 0."""
    generator = torch.Generator().manual_seed(0)
    old, gap, mismatch = torch.randn(3, ROWS, TOKENS, generator=generator)
    old = -old.abs() - 0.01
    logp = (old + 0.5 * gap)[rows].requires_grad_()
    advantages = torch.tensor([1.0, 0.0, -1.0, 0.0, 0.5, -0.0])[rows, None].expand_as(logp)
    batch = TokenBatch(
        logp=logp,
        old_logp=old[rows],
        advantages=advantages,
        mask=torch.ones_like(logp),
        ref_logp=old[rows] - 0.3,
        rollout_logp=(old + 0.2 * mismatch)[rows],
        entropy=old[rows].abs(),
    )
    return torch.autograd.grad(loss(batch, TOTALS).loss, logp)[0]


@pytest.mark.parametrize("surrogate", SURROGATES, ids=str)
def test_no_part_of_ours_learns_from_them_or_lets_them_change_others(surrogate):
    assert vanishes_at_zero_advantage(surrogate)
    for ratio in RATIOS:
        for aggregate in AGGREGATES:
            for correction in CORRECTIONS:
                for max_weight in (None, 2.0):
                    loss = PolicyLoss(ratio, surrogate, aggregate, None, correction, max_weight)
                    assert loss.vanishes_at_zero_advantage and vanishes_at_zero_advantage(loss)
                    whole = gradient_of(loss, torch.arange(ROWS))
                    assert (whole[1::2] == 0).all() and (whole[::2] != 0).any()
                    assert torch.equal(gradient_of(loss, torch.arange(0, ROWS, 2)), whole[::2])


def test_a_reference_kl_learns_from_them():
    loss = PolicyLoss(TokenRatio(), Clip(Fixed(0.2, 0.2)), TokenMean(), ReferenceKL(0.1))
    assert not loss.vanishes_at_zero_advantage
    assert (gradient_of(loss, torch.arange(ROWS))[1::2] != 0).any()
    assert dataclasses.replace(loss, reference_kl=ReferenceKL(0.0)).vanishes_at_zero_advantage


class EntropyBonus(Clip):
    """A surrogate of a user's own, made from ours."""

    def __call__(self, ratio, batch):
        found = super().__call__(ratio, batch)
        return found._replace(objective=found.objective - 0.01 * batch.logp)


class Bonus(PolicyLoss):
    """A loss of a user's own, made from ours."""

    def __call__(self, batch, totals=None):
        output = super().__call__(batch, totals)
        return dataclasses.replace(output, loss=output.loss - batch.logp.mean())


class Renamed(Clip):
    """Clip with another default and nothing else."""


class Normalised:
    """A correction whose weights depend on all samples of the batch."""

    def __call__(self, batch):
        weight = TokenMismatch()(batch)
        return weight / weight.mean()


def of(**changes) -> PolicyLoss:
    usual = {"ratio": TokenRatio(), "surrogate": Clip(Fixed(0.2, 0.2)), "aggregate": TokenMean()}
    return PolicyLoss(**{**usual, **changes})


def test_a_part_that_says_nothing_counts_as_one_that_learns_from_them():
    own = EntropyBonus(Fixed(0.2, 0.2))
    assert (gradient_of(of(surrogate=own), torch.arange(ROWS))[1::2] != 0).any()
    for loss in (
        of(surrogate=own),
        of(surrogate=DualClip(own)),
        of(surrogate=lambda ratio, batch: None),
        of(ratio=lambda batch: batch.logp.exp()),
        of(correction=Normalised()),
        of(correction=Truncate(Normalised())),
        of(correction=Discard(Normalised())),
        of(correction=Accept(Normalised())),
        Bonus(TokenRatio(), Clip(Fixed(0.2, 0.2)), TokenMean()),
        lambda batch, totals: None,
    ):
        assert not vanishes_at_zero_advantage(loss)
    assert vanishes_at_zero_advantage(of(surrogate=Renamed(Fixed(0.2, 0.2))))


def test_a_part_of_ones_own_may_say_it():
    class Scaled(EntropyBonus):
        vanishes_at_zero_advantage = True

        def __call__(self, ratio, batch):
            return Clip.__call__(self, ratio, batch)

    assert vanishes_at_zero_advantage(of(surrogate=Scaled(Fixed(0.2, 0.2))))
