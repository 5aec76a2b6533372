"""Group-relative advantages against their definitions."""

import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bandpo.advantage import centered_advantages, group_advantages, leave_one_out_advantages

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


def test_equal_rewards_give_no_gradient():
    rewards = torch.tensor([[1.0, 1.0, 1.0], [-1.0, -1.0, -1.0]])
    for advantages in (group_advantages, centered_advantages, leave_one_out_advantages):
        assert (advantages(rewards) == 0).all()


@pytest.mark.parametrize(
    "advantages", [group_advantages, centered_advantages, leave_one_out_advantages]
)
def test_invalid_samples_are_as_if_never_drawn(advantages):
    rewards = torch.tensor([[1.0, 0.0, 7.0, 0.0], [3.0, 1.0, float("nan"), float("inf")]])
    valid = torch.tensor([[1, 1, 0, 1], [1, 1, 0, 0]]).bool()
    actual = advantages(rewards, valid)
    assert (actual[~valid] == 0).all()
    torch.testing.assert_close(actual[0, [0, 1, 3]][None], advantages(rewards[:1, [0, 1, 3]]))
    torch.testing.assert_close(actual[1, :2][None], advantages(rewards[1:, :2]))
    assert (advantages(rewards, torch.zeros_like(valid)) == 0).all()


def test_a_group_of_one_has_no_advantage():
    for advantages in (group_advantages, centered_advantages, leave_one_out_advantages):
        assert advantages(torch.tensor([[3.0]])).item() == 0


def test_integer_rewards_are_computed_in_float32():
    assert group_advantages(torch.tensor([[0, 1]])).dtype == torch.float32


def test_rewards_must_be_grouped():
    with pytest.raises(ValueError, match=r"\[prompts, samples\]"):
        group_advantages(torch.ones(3))
