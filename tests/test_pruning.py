"""Pruned samples: the expected gradient over every outcome of the draws is that of all samples."""

import itertools
import random

import pytest
import torch

from bandpo import batching
from bandpo.advantage import group_advantages
from bandpo.batching import Minibatch, Sample, prune, schedule, totals_of
from bandpo.loss import (
    BandKL,
    Capped,
    Clip,
    ConstantNorm,
    DualClip,
    PolicyLoss,
    ReferenceKL,
    SequenceMeanTokenMean,
    SequenceRatio,
    TokenBatch,
    TokenMean,
    TokenRatio,
    batch_totals,
)

REWARDS = torch.tensor([[1.0, 0.0, 0.0, 1.0, 0.0], [0.0, 0.5, 0.0, 0.0, 0.0]], dtype=torch.float64)
GROUPS, GROUP = REWARDS.shape
TOKENS = 7
IDS = [[f"p{i}/{j}" for j in range(GROUP)] for i in range(GROUPS)]
PLACES = list(itertools.product(range(GROUPS), range(GROUP)))


def batch_of_all() -> TokenBatch:
    draw = torch.randn(
        3, len(PLACES), TOKENS, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    old = -draw[0].abs() - 0.01
    lengths = torch.tensor([7, 3, 1, 5, 6, 2, 7, 4, 1, 5])[:, None]
    return TokenBatch(
        (old + 0.4 * draw[1]).requires_grad_(),
        old,
        group_advantages(REWARDS).reshape(-1, 1).expand(-1, TOKENS),
        (torch.arange(TOKENS) < lengths).double(),
        ref_logp=old + 0.3 * draw[2],
    )


class Drawn:
    """Draws that prune the samples of an outcome."""

    def __init__(self, gone):
        self.gone = gone

    def __call__(self, seed: str):
        value = 0.0 if seed.removeprefix("7/3/prune/") in self.gone else 1.0
        return type("Generator", (), {"random": lambda self: value})()


@pytest.mark.parametrize("ratio", [TokenRatio(), SequenceRatio()], ids=["tokens", "sequences"])
@pytest.mark.parametrize(
    "aggregate",
    [TokenMean(), SequenceMeanTokenMean(), ConstantNorm(9)],
    ids=lambda a: type(a).__name__,
)
def test_the_expected_gradient_over_all_masks_is_that_of_all_samples(ratio, aggregate, monkeypatch):
    surrogate = DualClip(Clip(Capped(BandKL(0.05), 10.0)), 3.0)
    loss, q = PolicyLoss(ratio, surrogate, aggregate, ReferenceKL(0.3)), 0.7
    batch = batch_of_all()
    totals = batch_totals(batch.mask)
    (whole,) = torch.autograd.grad(loss(batch, totals).loss, batch.logp)
    advantages = group_advantages(REWARDS).tolist()
    mean = sum(abs(a) for row in advantages for a in row) / len(PLACES)
    chance = [q if abs(advantages[i][j]) < mean else 0.0 for i, j in PLACES]
    assert 0 < sum(p > 0 for p in chance) < len(PLACES)
    expected, certain = torch.zeros_like(whole), 0.0
    for mask in itertools.product([False, True], repeat=len(PLACES)):
        share = 1.0
        for gone, p in zip(mask, chance, strict=True):
            share *= p if gone else 1 - p
        if share == 0:
            continue
        certain += share
        gone = {IDS[i][j] for (i, j), here in zip(PLACES, mask, strict=True) if here}
        monkeypatch.setattr(batching.random, "Random", Drawn(gone))
        pruned, weights = prune(advantages, IDS, q, "7/3")
        assert {IDS[i][j] for i, j in pruned} == gone
        rows = [k for k, place in enumerate(PLACES) if place not in pruned]
        if not rows:
            continue
        weight = torch.tensor([weights.get(PLACES[k], 1.0) for k in rows], dtype=torch.float64)
        part = batch._each(lambda tensor, rows=rows: tensor[rows])
        part = TokenBatch(**{**vars(part), "weight": weight[:, None].expand_as(part.mask)})
        (found,) = torch.autograd.grad(loss(part, totals).loss, batch.logp)
        expected += share * found
    assert certain == pytest.approx(1.0, abs=1e-12)
    assert (expected - whole).abs().max() < 1e-12 and whole.abs().max() > 1e-3


def test_draws_follow_from_seed_and_id_alone_and_meet_their_probability():
    advantages = [[0.1] * 999 + [100.0] for _ in range(3)]
    ids = [[f"{i}/{j}" for j in range(1000)] for i in range(3)]
    gone, weights = prune(advantages, ids, 0.3, "1/2")
    assert len(gone) / 2997 == pytest.approx(0.3, abs=0.03)
    assert gone.isdisjoint(weights) and len(gone) + len(weights) == 2997
    assert set(weights.values()) == {1 / 0.7} and not any(j == 999 for _, j in gone)
    turned, _ = prune(advantages[::-1], ids[::-1], 0.3, "1/2")
    assert {(2 - i, j) for i, j in turned} == gone
    assert prune(advantages, ids, 0.3, "1/3")[0] != gone
    masked = {(0, j) for j in range(1000)}
    assert prune(advantages, ids, 0.3, "1/2", masked)[0] == {p for p in gone if p[0] != 0}


def test_without_pruning_or_spread_nothing_is_gone():
    assert prune([[1.0, 0.1]], [["a/0", "a/1"]], 0.0, "0/1") == (frozenset(), {})
    assert prune([[0.0, 0.0]], [["a/0", "a/1"]], 0.9, "0/1") == (frozenset(), {})
    assert prune([], [], 0.9, "0/1") == (frozenset(), {})


def test_pruned_samples_count_in_the_totals():
    sample = Sample((1, 2), (3, 4, 5), 1.0, None)
    alone = totals_of([sample, sample])
    beside = totals_of(Minibatch([sample], pruned=totals_of([sample])))
    assert beside == alone


@pytest.mark.parametrize("ranks", [1, 3])
def test_pruning_moves_no_group_to_another_minibatch(ranks):
    rng = random.Random(0)
    lengths = [[rng.randint(1, 30) for _ in range(4)] for _ in range(6)]
    places = {(i, j) for i in range(6) for j in range(4)}
    pruned = frozenset(rng.sample(sorted(places), 11))

    def plan(masked):
        return schedule(lengths, float, updates=2, epochs=2, seed="s", ranks=ranks, masked=masked)

    for whole, kept, gone in zip(
        plan(frozenset()), plan(pruned), plan(places - pruned), strict=True
    ):
        parts = [{place for share in part for place in share} for part in (whole, kept, gone)]
        assert parts[1] | parts[2] == parts[0] and parts[2] == parts[0] & pruned
