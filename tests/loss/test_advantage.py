"""Group-relative advantages against their definitions."""

import itertools
import statistics
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bandpo.advantage import (
    RewardParts,
    centered_advantages,
    gdpo_advantages,
    group_advantages,
    has_spread,
    leave_one_out_advantages,
    maximum_likelihood_advantages,
    takes_parts,
)

ESTIMATORS = (group_advantages, centered_advantages, leave_one_out_advantages)
ALL = (*ESTIMATORS, maximum_likelihood_advantages)
groups = st.integers(2, 8).flatmap(
    lambda size: st.lists(
        st.lists(st.floats(-5, 5), min_size=size, max_size=size), min_size=1, max_size=4
    )
)


@given(groups)
def test_definitions(rewards):
    tensor = torch.tensor(rewards, dtype=torch.float64)
    for row, grpo, dr_grpo, rloo in zip(
        rewards,
        group_advantages(tensor).tolist(),
        centered_advantages(tensor).tolist(),
        leave_one_out_advantages(tensor).tolist(),
        strict=True,
    ):
        mean, deviation = statistics.fmean(row), statistics.stdev(row)
        others = [(sum(row) - x) / (len(row) - 1) for x in row]
        assert dr_grpo == pytest.approx([x - mean for x in row], abs=1e-12)
        assert grpo == pytest.approx([(x - mean) / (deviation + 1e-6) for x in row], abs=1e-5)
        assert rloo == pytest.approx([x - y for x, y in zip(row, others, strict=True)], abs=1e-9)


@pytest.mark.parametrize("advantages", ALL)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64])
def test_equal_rewards_give_exactly_zero(advantages, dtype):
    values = [-0.9, 0.1, 1.1, 0.2, 1.2, -1 / 3, 0.3, 7.0, 1e6 + 0.1, 1e-7, 3e38]
    values = torch.tensor(values, dtype=torch.float64)
    if dtype == torch.int64:
        values = values.clamp(max=2.0**40)
    for size in range(1, 65):
        rewards = values.to(dtype)[:, None].expand(-1, size)
        assert (advantages(rewards) == 0).all()
        valid = torch.arange(size) % 3 != 0
        among_others = torch.where(valid, rewards, 5).to(dtype)
        assert (advantages(among_others, valid.expand_as(rewards)) == 0).all()


@given(st.floats(-1e30, 1e30), st.integers(1, 200))
def test_any_equal_rewards_give_exactly_zero(value, size):
    for advantages in ALL:
        assert (advantages(torch.full((1, size), value)) == 0).all()


@given(st.lists(st.sampled_from([0.1 + 0.2, 0.3, 0.3 + 1e-12, 1.1, 1.1 + 1e-6, -0.9]), min_size=2))
def test_spread_is_what_gives_an_advantage(rewards):
    for advantages in ESTIMATORS:
        assert has_spread(rewards) == bool((advantages(torch.tensor([rewards])) != 0).any())


def test_spread_of_rewards_of_any_kind():
    assert has_spread([0, 1]) and not has_spread([2, 2]) and not has_spread([True, True])


@pytest.mark.parametrize("advantages", ALL)
def test_invalid_samples_are_as_if_never_drawn(advantages):
    rewards = torch.tensor([[1.0, 0.0, 7.0, 0.0], [3.0, 1.0, float("nan"), float("inf")]])
    valid = torch.tensor([[1, 1, 0, 1], [1, 1, 0, 0]]).bool()
    actual = advantages(rewards, valid)
    assert (actual[~valid] == 0).all()
    torch.testing.assert_close(actual[0, [0, 1, 3]][None], advantages(rewards[:1, [0, 1, 3]]))
    torch.testing.assert_close(actual[1, :2][None], advantages(rewards[1:, :2]))
    assert (advantages(rewards, torch.zeros_like(valid)) == 0).all()


@pytest.mark.parametrize(("correct", "wrong"), [(1.0, 0.0), (1.0, -1.0), (0.5, -2.0)])
def test_maxrl_divides_by_the_share_of_right_answers(correct, wrong):
    """(x − p)/p for x = 1 where right, whatever right and wrong are worth; 0 where none is."""
    right = torch.tensor([[1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
    rewards = torch.where(right.bool(), correct, wrong)
    expected = torch.tensor(
        [[3.0, -1, -1, -1], [1 / 3, 1 / 3, 1 / 3, -1.0], [0, 0, 0, 0], [0, 0, 0, 0]]
    )
    found = maximum_likelihood_advantages(rewards, wrong=wrong)
    torch.testing.assert_close(found, expected)
    assert (found[2:] == 0).all()
    valid = torch.tensor([[1, 1, 0, 1]] * 4).bool()
    whole = maximum_likelihood_advantages(rewards[:, [0, 1, 3]], wrong=wrong)
    masked = maximum_likelihood_advantages(rewards, valid, wrong=wrong)
    torch.testing.assert_close(masked[:, [0, 1, 3]], whole)
    assert (masked[:, 2] == 0).all()


def test_maxrl_turns_no_gradient_round():
    """A mean below the value of a wrong answer: (R − mean)/mean would prefer the worse sample."""
    rewards = torch.tensor([[-1.0, -3.0]])
    assert (maximum_likelihood_advantages(rewards) == 0).all()
    assert maximum_likelihood_advantages(rewards, wrong=-4.0)[0, 0] > 0


def test_maxrls_expected_gradient_is_that_of_the_truncated_likelihood():
    """By enumeration: E[Σ A·∇log π]/G is the gradient of Σ_k −(1 − p)^k/k, k < G: log p cut off."""
    size, logit = 4, torch.tensor(-0.4, dtype=torch.float64, requires_grad=True)
    p = logit.sigmoid()
    expected = torch.autograd.grad(-sum((1 - p) ** k / k for k in range(1, size)), logit)[0]
    found = torch.zeros((), dtype=torch.float64)
    for group in itertools.product((0.0, 1.0), repeat=size):
        rewards = torch.tensor([group], dtype=torch.float64)
        probability = torch.where(rewards == 1, p, 1 - p).prod().detach()
        slope = torch.where(rewards == 1, 1 - p, -p).detach()  # of log π in the logit
        found += probability * (maximum_likelihood_advantages(rewards) * slope).sum() / size
    torch.testing.assert_close(found, expected)


def test_a_group_of_one_has_no_advantage():
    for advantages in ALL:
        assert advantages(torch.tensor([[3.0]])).item() == 0


def test_integer_rewards_are_computed_in_float32():
    assert group_advantages(torch.tensor([[0, 1]])).dtype == torch.float32


def test_rewards_must_be_grouped():
    with pytest.raises(ValueError, match=r"\[prompts, samples\]"):
        group_advantages(torch.ones(3))


# --- GDPO --------------------------------------------------------------------------------------


def gdpo_by_numpy(values, weights, valid):
    """The paper's rule over the samples that count, written another way; [P, G, K] → [P, G]."""
    values = np.asarray(values, dtype=np.float64)
    total = np.zeros(values.shape[:2])
    for p, kept in enumerate(valid):
        for k, weight in enumerate(weights):
            column = values[p, kept, k]
            if len(column) > 1:
                scaled = (column - column.mean()) / (column.std(ddof=1) + 1e-6)
                total[p, kept] += weight * scaled
    batch = total[valid]
    total[valid] = (batch - batch.mean()) / (batch.std(ddof=1) + 1e-6)
    return total


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 0.1), (2.0, -0.5), (1.0,)])
def test_gdpo_is_the_papers(weights, masked):
    generator = torch.Generator().manual_seed(len(weights))
    values = torch.randint(0, 3, (5, 8, len(weights)), generator=generator).float()
    values[0] = 1.0  # a group without spread
    valid = torch.rand(5, 8, generator=generator) > 0.3 if masked else torch.ones(5, 8).bool()
    names = ("a", "b")[: len(weights)]
    found = gdpo_advantages(
        RewardParts(names, values, torch.tensor(weights)), valid if masked else None
    )
    expected = gdpo_by_numpy(values, weights, valid.numpy())
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert found[0].eq(0).all() and found[~valid].eq(0).all()


def test_gdpo_tells_apart_what_a_sum_does_not():
    """Two binary rewards: GRPO gives (1, 0) and (0, 1) the same advantage."""
    values = torch.tensor(
        [[[1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 1.0]]]
    )
    summed = group_advantages(values.sum(-1))[0]
    decoupled = gdpo_advantages(RewardParts(("a", "b"), values, torch.ones(2)))[0]
    assert summed[0] == summed[1] and decoupled[0] > decoupled[1] > decoupled[2]


def test_gdpo_ignores_the_scale_of_a_part():
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(3, 8, 2, generator=generator)
    scaled = values * torch.tensor([1.0, 1000.0])
    one, other = (
        gdpo_advantages(RewardParts(("a", "b"), v, torch.ones(2))) for v in (values, scaled)
    )
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_a_tensor_of_rewards_is_one_part():
    rewards = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    whole = gdpo_advantages(RewardParts.whole(rewards))
    assert torch.equal(gdpo_advantages(rewards), whole)


def test_only_marked_estimators_take_parts():
    assert takes_parts(gdpo_advantages) and takes_parts(partial(gdpo_advantages, valid=None))
    assert not takes_parts(group_advantages) and not takes_parts(partial(group_advantages))
