"""The dual variable of a query's trust region, against other ways to the same optimum."""

import functools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bandpo.advantage import (
    centered_advantages,
    dual_variables,
    group_advantages,
    query_dual,
    query_kl_advantages,
)
from bandpo.errors import UserError

groups = st.lists(st.floats(-3, 3, width=32), min_size=2, max_size=16)
deltas = st.sampled_from([1e-4, 0.02, 0.3])


def dual(rewards: np.ndarray, delta: float, value: float) -> float:
    best = rewards.max()
    return value * delta + best + value * math.log(np.exp((rewards - best) / value).mean())


@given(rewards=groups, delta=deltas)
def test_the_dual_variable_minimises_the_dual(rewards, delta):
    values = np.array(rewards)
    spread = values.max() - values.min()
    (found,) = query_dual(torch.tensor([rewards], dtype=torch.float64), delta=delta).tolist()
    if spread == 0:
        assert found == 0
        return
    assert found >= 1e-3 * spread * (1 - 1e-9)
    # Golden-section search over log λ: the dual is convex in λ and so has one minimum there.
    low, high, golden = math.log(1e-3 * spread), math.log(1e3 * spread), (math.sqrt(5) - 1) / 2
    for _ in range(200):
        a, b = high - golden * (high - low), low + golden * (high - low)
        if dual(values, delta, math.exp(a)) < dual(values, delta, math.exp(b)):
            high = b
        else:
            low = a
    least = dual(values, delta, math.exp(low))
    assert dual(values, delta, found) <= least + 1e-9 * (1 + spread)


@given(rewards=groups, delta=deltas)
def test_advantages_are_the_log_ratios_of_the_optimal_policy(rewards, delta):
    rows = torch.tensor([rewards], dtype=torch.float64)
    (advantages,) = query_kl_advantages(rows, delta=delta).double()
    (found,) = query_dual(rows, delta=delta)
    if found == 0:
        assert (advantages == 0).all()
        return
    policy = (advantages / found).exp() / len(rewards)
    assert policy.sum().item() == pytest.approx(1.0, abs=1e-4)
    torch.testing.assert_close(
        policy, (rows[0] / found).softmax(-1).to(policy), rtol=1e-4, atol=1e-6
    )
    spread = max(rewards) - min(rewards)
    if found > 1.001e-3 * spread:  # else the best samples alone are within delta
        kl = torch.special.xlogy(policy, policy * len(rewards)).sum().item()
        assert kl == pytest.approx(delta, rel=2e-2)


@pytest.mark.parametrize("seed", range(3))
def test_in_a_small_region_it_is_grpo(seed):
    rewards = torch.rand(4, 16, generator=torch.Generator().manual_seed(seed))
    deviation = rewards.double().std(-1, correction=0)
    for delta in (1e-4, 1e-6, 1e-8):
        found = query_dual(rewards, delta=delta) * math.sqrt(2 * delta)
        assert (found / deviation - 1).abs().max() < 3 * math.sqrt(delta) + 1e-6
        gap = query_kl_advantages(rewards, delta=delta) - centered_advantages(rewards)
        assert gap.abs().max() < 3 * math.sqrt(delta)
    target = query_kl_advantages(rewards, delta=1e-6) / found[:, None] * math.sqrt(1e-8 / 1e-6)
    assert target.isfinite().all()


def test_groups_of_equal_rewards_and_samples_that_do_not_count_get_0():
    rewards = torch.tensor([[0.3, 0.3, 0.3], [1.0, 0.0, 7.0], [5.0, 1.0, 2.0]])
    valid = torch.tensor([[True] * 3, [True, True, False], [False, False, True]])
    advantages = query_kl_advantages(rewards, valid, delta=0.05)
    assert (advantages[0] == 0).all() and advantages[1, 2] == 0 and (advantages[2] == 0).all()
    alone = query_kl_advantages(rewards[1:2, :2], delta=0.05)
    torch.testing.assert_close(advantages[1:2, :2], alone)
    torch.testing.assert_close(
        query_dual(rewards, valid, delta=0.05)[1:2], query_dual(rewards[1:2, :2], delta=0.05)
    )
    assert query_dual(rewards, valid)[[0, 2]].tolist() == [0.0, 0.0]


def test_rewards_scale_and_shift():
    rewards = torch.tensor([[0.0, 1.0, 1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    found = query_dual(rewards)
    torch.testing.assert_close(query_dual(1e6 + 50 * rewards), 50 * found)
    torch.testing.assert_close(query_dual(1e-6 * rewards), 1e-6 * found)
    # All weight on the one wrong of many is out of reach, on the many right ones it is not.
    almost = torch.ones(1, 100)
    almost[0, 0] = 0.0
    assert query_dual(almost, delta=0.02).item() == pytest.approx(1e-3)
    assert query_dual(1 - almost, delta=0.02).item() > 0.1


def test_estimators_with_a_dual_variable_are_known_by_it():
    rewards, valid = torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[True, True, False]])
    estimator = functools.partial(query_kl_advantages, delta=0.1)
    assert dual_variables(estimator, rewards) == query_dual(rewards, delta=0.1)
    masked = functools.partial(estimator, valid=valid)
    assert dual_variables(masked, rewards) == query_dual(rewards, valid, delta=0.1)
    assert dual_variables(group_advantages, rewards) is None
    with pytest.raises(UserError, match="delta"):
        query_dual(rewards, delta=0.0)
