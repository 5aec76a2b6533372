"""Batched training against one policy at a time in plain torch, and against hand-made gradients."""

import math

import numpy as np
import pytest
import torch
from tabular_study import Actions, Adam, Bandit, Below, Sgd, Update, ablations, applicable, train
from tabular_study.theory import (
    expected_turn,
    log_ratio_gained,
    reach_to_meet,
    share_of_reach,
    turning_point,
)

from bandpo.errors import UserError
from bandpo.loss import Fixed
from bandpo.methods.method import load_methods

BANDIT = Bandit(20, [Actions(1, 0.05, 0.2), Actions(4, 0.005, 0.05)])
CORRECT = 5


def start(seed: int, index: int) -> tuple[torch.Tensor, np.random.Generator]:
    """A policy's first logits and its stream, from the definitions."""
    stream = np.random.default_rng([seed, index])
    drawn = stream.random(CORRECT, dtype=np.float32)
    ranges = [(0.05, 0.2)] + [(0.005, 0.05)] * 4
    p = [low * (high / low) ** float(u) for (low, high), u in zip(ranges, drawn, strict=True)]
    p += [(1 - sum(p)) / (20 - CORRECT)] * (20 - CORRECT)
    return torch.tensor(p, dtype=torch.float64).log(), stream


def group(logits: torch.Tensor, stream: np.random.Generator, size: int):
    """Actions and advantages of one rollout of one policy."""
    cumulated = np.cumsum(logits.softmax(-1).numpy())
    actions = [
        min(int((cumulated <= u * cumulated[-1]).sum()), 19)
        for u in stream.random(size, dtype=np.float32)
    ]
    rewards = torch.tensor([float(a < CORRECT) for a in actions], dtype=torch.float64)
    return actions, (rewards - rewards.mean()) / (rewards.std() + 1e-6)


def trained_alone(seed, index, optimizer, interval, inner, size, rollouts, dual=10.0):
    """PPO's clipped objective with the dual clip, one sample after the other."""
    logits, stream = start(seed, index)
    logits.requires_grad_()
    step = optimizer([logits])
    for _ in range(rollouts):
        old = logits.detach().log_softmax(-1)
        actions, advantages = group(logits.detach(), stream, size)
        for _ in range(inner):
            logp, objective = logits.log_softmax(-1), 0.0
            for action, a in zip(actions, advantages.tolist(), strict=True):
                low, high = interval(old[action].exp().item())
                r = (logp[action] - old[action]).exp()
                one = torch.minimum(r * a, r.clamp(low, high) * a)
                objective = objective + (one if a >= 0 else one.clamp(min=dual * a))
            step.zero_grad()
            (-objective / size).backward()
            step.step()
    p = logits.detach().softmax(-1)[:CORRECT]
    return p.sum().item(), (1 - (1 - p) ** 32).sum().item()


def total_variation(p: float) -> tuple[float, float]:
    return max(1 - 0.05 / p, 0.0), min(1 + 0.05 / p, 1 / p, 10.0)


@pytest.mark.parametrize(
    ("name", "interval"), [("grpo", lambda p: (0.8, 1.2)), ("band_tv", total_variation)]
)
@pytest.mark.parametrize("adam", [False, True])
def test_all_seeds_at_once_are_each_seed_alone(name, interval, adam):
    (method,) = load_methods(name)
    update = Update(Adam() if adam else Sgd(), reach=1.5, inner=3, group_size=16)
    last = train(BANDIT, method, update, seed=3, count=4, rollouts=3).last()
    kind = torch.optim.Adam if adam else torch.optim.SGD
    for index in range(4):
        accuracy, covered = trained_alone(
            3, index, lambda p: kind(p, lr=update.lr), interval, 3, 16, rollouts=3
        )
        assert last.accuracy[index].item() == pytest.approx(accuracy, abs=1e-6)
        assert last.coverage[index].item() == pytest.approx(covered, abs=1e-6)


def test_one_sgd_step_by_hand():
    (method,) = load_methods("band_kl")
    update = Update(Sgd(), reach=0.7, inner=1, group_size=16)
    course = train(BANDIT, method, update, seed=5, count=3, rollouts=1)
    for index in range(3):
        logits, stream = start(5, index)
        actions, advantages = group(logits, stream, 16)
        p, gradient = logits.softmax(-1), torch.zeros(20, dtype=torch.float64)
        for action, a in zip(actions, advantages.tolist(), strict=True):
            gradient += a * (torch.eye(20, dtype=torch.float64)[action] - p) / 16
        after = (logits + update.lr * gradient).softmax(-1)[:CORRECT]
        assert course.states.accuracy[1, index].item() == pytest.approx(after.sum().item(), 1e-6)
        covered = (1 - (1 - after) ** 32).sum().item()
        assert course.last().coverage[index].item() == pytest.approx(covered, 1e-6)


def test_seeds_do_not_see_each_other_and_methods_share_their_samples():
    grpo, wide = load_methods("grpo,grpo:eps_low=0.9999:eps_high=1e6")
    update = Update(Sgd(), reach=0.1)
    few, many = (train(BANDIT, grpo, update, 0, count, 4).states for count in (3, 8))
    torch.testing.assert_close(few.accuracy, many.accuracy[:, :3], rtol=1e-9, atol=1e-9)
    # So small a step meets neither method's bounds: nothing may differ.
    other = train(BANDIT, wide, update, 0, 3, 4).states
    assert torch.equal(few.accuracy[1], other.accuracy[1])
    far = [train(BANDIT, m, Update(Sgd(), 6.0), 0, 3, 1).last() for m in (grpo, wide)]
    assert not torch.equal(far[0].accuracy, far[1].accuracy)


def test_states_at_equal_accuracy():
    (method,) = load_methods("grpo")
    observed = []
    course = train(
        *(BANDIT, method, Update(Sgd(), 3.0), 0, 6, 60),
        accuracy=0.9, stop=True, observe=[observed.append],
    )  # fmt: skip
    rollouts = len(course.states.accuracy) - 1
    assert 1 < rollouts < 60 and len(observed) == 8 * rollouts
    when, at = course.when(0.9), course.at(0.9)
    for s in range(6):
        curve = course.states.accuracy[:, s].tolist()
        assert when[s].item() == next(i for i, x in enumerate(curve) if x >= 0.9)
        assert at.accuracy[s].item() == curve[when[s]]
        assert at.coverage[s] == course.states.coverage[when[s], s]
    assert course.when(1.1).tolist() == [rollouts] * 6
    on = train(BANDIT, method, Update(Sgd(), 3.0), 0, 6, rollouts + 5, accuracy=0.9)
    assert len(on.states.accuracy) == rollouts + 6
    assert torch.equal(on.states.accuracy[: rollouts + 1], course.states.accuracy)


def test_the_only_success_of_a_group_is_pushed_by_the_reach():
    """One step moves its logit by the reach, many by −ln(1 − reach)."""
    (method,) = load_methods("grpo:eps_low=1:eps_high=1e9:dual_clip=1e9")
    size, actions = 32, torch.arange(32)[None]  # the first of 32 different actions is the success
    advantages = method.advantage((actions == 0).float())
    for inner, reach in [(1, 0.8), (8, 0.8), (400, 0.8), (400, 0.3)]:
        lr = Update(Sgd(), reach, inner, size).lr
        p = torch.full((1, 100_000), 1e-5, dtype=torch.float64)
        logits = p.log().requires_grad_()
        for _ in range(inner):
            ratio = (logits.log_softmax(-1) - p.log()).gather(-1, actions).exp()
            (gradient,) = torch.autograd.grad((ratio * advantages).sum() / size, logits)
            logits = (logits + lr * gradient).detach().requires_grad_()
        gained = (logits - p.log())[0, 0].item()
        assert gained == pytest.approx(log_ratio_gained(reach, inner), rel=1e-3)
        if inner == 400:
            assert gained == pytest.approx(-math.log(1 - reach), rel=1e-2)


def test_reach_to_meet_a_bound():
    for bound, inner in [(1.2, 1), (1.2, 8), (10.0, 8), (10.0, 500)]:
        reach = reach_to_meet(bound, inner)
        assert log_ratio_gained(reach, inner) == pytest.approx(math.log(bound), rel=1e-6)
    assert reach_to_meet(10.0, 1) == pytest.approx(math.log(10.0))
    assert reach_to_meet(10.0, 100_000) == pytest.approx(0.9, rel=1e-3)
    # The advantage of a success falls as √((G − m)/m) with the number m of successes.
    (method,) = load_methods("grpo")
    rewards = torch.zeros(2, 32)
    rewards[0, :1] = rewards[1, :5] = 1
    alone, of_five = method.advantage(rewards)[:, 0].tolist()
    assert share_of_reach(5, 32) == pytest.approx(of_five / alone, rel=1e-5)
    low, high = expected_turn(Fixed(0.2, 1.0), 0.1, inner=100_000, group_size=32)
    assert (low, high) == pytest.approx((0.5, 0.5 / math.sqrt((32 - 4.1) / 4.1 / 31)), rel=1e-3)


def test_turning_points():
    reaches = [1.0, 2.0, 4.0]
    curves = torch.tensor([[-1, 1, 2], [-2, -1, 3], [1, 2, 3], [1, 2, -3], [1, -1, 1.0]])
    turns = turning_point(reaches, curves.double()).tolist()
    assert turns == pytest.approx([2**0.5, 2 * 2**0.25, 0, math.inf, 2 * 2**0.5])


def test_every_method_that_a_bandit_can_tell_apart():
    methods = sorted(load_methods("all"), key=lambda method: method.name)
    kept, left_out = applicable(methods, 32)
    of_batches, of_groups = {"m2po", "clip_cov", "kl_cov", "bapo"}, {"elastic", "query_kl"}
    of_sequences = {"gspo", "luspo", "topr", "vespo"}
    twins = {"dapo", "kl_chi2", "unbiased_kl", "off_policy_mask"}
    assert left_out.keys() == of_sequences | twins | of_batches | of_groups
    assert left_out["dapo"].endswith("it is clip_higher") and "sequence" in left_out["gspo"]
    assert {"grpo", "dr_grpo", "band_kl", "dppo_kl", "cispo", "cfpo"} <= {m.name for m in kept}
    for method in kept:  # and each of them can be trained
        last = train(BANDIT, method, Update(Sgd(), 2.0), 0, 2, 2).last()
        assert last.accuracy.isfinite().all() and last.accuracy.max() > 0.06


def test_below_takes_either_bounds():
    below = Below(0.1, rare=Fixed(0.5, 3.0), common=Fixed(0.1, 0.2))
    low, high = below(torch.tensor([0.01, 0.0999, 0.1001, 0.9]).log())
    assert low.tolist() == pytest.approx([0.5, 0.5, 0.9, 0.9])
    assert high.tolist() == pytest.approx([4, 4, 1.2, 1.2])
    (method,) = ablations({"x": Fixed(0.2, 0.2)})
    (grpo,) = load_methods("grpo")
    assert method.loss == grpo.loss


def test_bad_updates_are_named():
    for wrong in ({"reach": 0.0}, {"inner": 0}, {"group_size": 1}):
        with pytest.raises(UserError, match="needs reach > 0"):
            Update(Sgd(), **wrong)
