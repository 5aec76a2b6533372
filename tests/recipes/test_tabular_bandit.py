"""Bandits by enumeration and loops."""

import itertools
import math

import numpy as np
import pytest
import torch
from tabular_study import Actions, Bandit, Streams, coverage

from bandpo.errors import UserError

BANDIT = Bandit(12, [Actions(1, 0.05, 0.2), Actions(3, 0.001, 0.02)])


def test_coverage_by_enumeration():
    probabilities, samples = [0.5, 0.2, 0.05], 4  # and 0.25 for a fourth, wrong action
    whole = [*probabilities, 0.25]
    expected = sum(
        math.prod(whole[i] for i in drawn) * len(set(drawn) - {3})
        for drawn in itertools.product(range(4), repeat=samples)
    )
    assert coverage(torch.tensor(probabilities), samples).item() == pytest.approx(expected)
    assert coverage(torch.tensor([1e-9, 1.0])).item() == pytest.approx(1 + 32e-9, rel=1e-6)


def test_start():
    logits = BANDIT.start(Streams(0, 200))
    p = logits.exp().double()
    torch.testing.assert_close(p.sum(-1), torch.ones(200, dtype=torch.float64), atol=1e-6, rtol=0)
    assert p[:, 0].min() >= 0.05 * (1 - 1e-9) and p[:, 0].max() <= 0.2 * (1 + 1e-9)
    assert p[:, 1:4].min() >= 0.001 * (1 - 1e-9) and p[:, 1:4].max() <= 0.02 * (1 + 1e-9)
    assert torch.equal(p[:, 4:], p[:, 4:5].expand(-1, 8))
    # Log-uniform: the mean of ln p is the middle of the range.
    middle = (math.log(0.001) + math.log(0.02)) / 2
    assert logits[:, 1:4].mean().item() == pytest.approx(middle, abs=0.12)


def test_a_seed_draws_the_same_beside_any_others():
    few, many = Streams(7, 2), Streams(7, 5)
    for numbers in (3, 4):
        assert torch.equal(few.uniform(numbers), many.uniform(numbers)[:2])
    assert not torch.equal(Streams(8, 2).uniform(3), Streams(7, 2).uniform(3))


def test_samples_are_the_inverse_of_the_cumulated_probabilities():
    streams = Streams(1, 5)
    p = BANDIT.start(streams).softmax(-1)
    uniform = streams.uniform(40)
    drawn = BANDIT.sample(p, uniform)
    cumulated = np.cumsum(p.double().numpy(), axis=-1)
    for s, i in itertools.product(range(5), range(40)):
        expected = int((cumulated[s] <= uniform[s, i].item()).sum())
        assert drawn[s, i].item() == expected
    assert torch.equal(BANDIT.rewards(drawn), (drawn < 4).double())
    assert BANDIT.sample(p, torch.tensor([[0.0, 1 - 2**-24]] * 5)).tolist() == [[0, 11]] * 5


def test_state_by_its_definitions():
    p = torch.tensor([[0.6, 0.1, 0.1, 0.1, *[0.0125] * 8]])
    state = BANDIT.state(p.log())
    assert state.accuracy.item() == pytest.approx(0.9)
    assert state.entropy.item() == pytest.approx(-(p * p.log()).sum().item(), rel=1e-5)
    assert state.coverage.item() == pytest.approx(1 + 3 * (1 - 0.9**32), rel=1e-5)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Actions(0, 0.1, 0.2), "count >= 1"),
        (lambda: Actions(1, 0.3, 0.2), "low <= high"),
        (lambda: Bandit(4, [Actions(4, 0.01, 0.02)]), "fewer than all"),
        (lambda: Bandit(40, [Actions(10, 0.01, 0.2)]), "up to 2"),
        (lambda: Bandit(40, []), "needs correct actions"),
    ],
)
def test_bad_bandits_are_named(make, words):
    with pytest.raises(UserError, match=words):
        make()
