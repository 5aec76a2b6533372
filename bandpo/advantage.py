"""Group-relative advantages: a sample is compared with the other samples of its prompt."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bandpo.errors import UserError

# Keeps groups of equal rewards at advantage 0 instead of 0/0; the value of BandPO's release.
STD_EPSILON = 1e-6
LEAST_DUAL = 1e-3
"""The least λ of `query_dual`, as a share of the spread of a group's rewards."""


def group_advantages(rewards: Tensor, valid: Tensor | None = None) -> Tensor:
    """GRPO's advantage, A = (R − mean(R)) / (std(R) + 1e-6), std with ddof 1.

    `rewards` [P, G]; `valid` [P, G] bool excludes samples: they get 0 and count in no statistic.
    Groups of one sample or of equal rewards get exactly 0. Source: DeepSeekMath, section 4.1.2.
    """
    centered, valid = _centered(rewards, valid)
    count = valid.sum(-1, keepdim=True)
    std = (centered.square().sum(-1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    return centered / (std + STD_EPSILON)


def centered_advantages(rewards: Tensor, valid: Tensor | None = None) -> Tensor:
    """Dr. GRPO's advantage, A = R − mean(R), which does not favour too easy or too hard prompts.

    Shapes and zeros as in `group_advantages`. Source: Understanding R1-Zero-Like Training:
    A Critical Perspective, section 3.2.
    """
    return _centered(rewards, valid)[0]


def leave_one_out_advantages(rewards: Tensor, valid: Tensor | None = None) -> Tensor:
    """RLOO's advantage, A_i = R_i − mean of the other samples = G/(G−1) · (R_i − mean(R)).

    Shapes and zeros as in `group_advantages`. Source: Back to Basics: Revisiting
    REINFORCE-Style Optimization for Learning from Human Feedback in LLMs (RLOO).
    """
    centered, valid = _centered(rewards, valid)
    count = valid.sum(-1, keepdim=True)
    return centered * count / (count - 1).clamp(min=1)


def maximum_likelihood_advantages(
    rewards: Tensor, valid: Tensor | None = None, wrong: float = 0.0
) -> Tensor:
    """MaxRL's advantage, A = (R − mean(R)) / (mean(R) − wrong), and 0 where the mean is `wrong`.

    `wrong` is the reward of a wrong answer, the paper's 0: then the mean is the share p of right
    answers, and 1/p the slope of log p, so that prompts count as in maximum likelihood, the hard
    ones most. A mean below `wrong`, which other rewards may have, is no share, and has advantage 0
    too. Shapes and other zeros as in `group_advantages`.
    Source: Maximum Likelihood Reinforcement Learning (arXiv 2602.02710).
    """
    centered, valid = _centered(rewards, valid)
    above = torch.where(valid, _floating(rewards) - wrong, 0.0).sum(-1, keepdim=True)
    share = above / valid.sum(-1, keepdim=True).clamp(min=1)
    return torch.where(share > 0, centered / torch.where(share > 0, share, 1.0), 0.0)


class RewardParts(NamedTuple):
    """The parts of rewards: names [K], values [P, G, K] and weights [K]; Σ_k w_k · r_k is R."""

    names: tuple[str, ...]
    values: Tensor
    weights: Tensor

    @classmethod
    def whole(cls, rewards: Tensor) -> RewardParts:
        """Rewards [P, G] as their own only part."""
        return cls(("reward",), rewards[..., None], torch.ones(1))


def from_parts(estimator: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Marks an estimator that takes a RewardParts in place of rewards [P, G]."""
    estimator.takes_parts = True  # type: ignore[attr-defined]
    return estimator


def takes_parts(estimator: Callable[..., Tensor]) -> bool:
    """Whether an estimator is marked by `from_parts`."""
    inner = getattr(estimator, "func", estimator)  # hydra's _partial_
    return bool(getattr(inner, "takes_parts", False))


@from_parts
def gdpo_advantages(parts: RewardParts | Tensor, valid: Tensor | None = None) -> Tensor:
    """GDPO's advantage: each part normalised in its group, then their sum over the whole batch.

        A_k = (r_k − mean(r_k)) / (std(r_k) + 1e-6) in each group, S = Σ_k w_k · A_k,
        A = (S − mean(S)) / (std(S) + 1e-6) over the batch, std with ddof 1

    so that a part's weight alone says how much it counts, whatever the spread of its values. The
    batch are all samples of the step; mean(S) is 0, since it is so in every group. Shapes and
    zeros as in `group_advantages`, `parts` [P, G, K]; a tensor of rewards [P, G] is one part.
    Source: GDPO: Group reward-Decoupled Normalization Policy Optimization for Multi-reward RL
    Optimization (arXiv 2601.05242), section 3.
    """
    if isinstance(parts, Tensor):
        parts = RewardParts.whole(parts)
    columns = parts.values.unbind(-1)
    weights = _floating(parts.weights).unbind()
    total = sum(w * group_advantages(r, valid) for w, r in zip(weights, columns, strict=True))
    assert isinstance(total, Tensor)
    count = total.numel() if valid is None else int(valid.sum())
    std = (total.square().sum() / max(count - 1, 1)).sqrt()
    return total / (std + STD_EPSILON)


def query_kl_advantages(
    rewards: Tensor, valid: Tensor | None = None, *, delta: float = 0.02
) -> Tensor:
    """The log-ratio of a query's optimal policy within KL(π ‖ π_old) <= delta, times its λ.

        A = R − λ·log mean exp(R/λ),  λ = argmin λ·delta + λ·log mean exp(R/λ)

    so that π ∝ π_old·exp(A/λ) has the largest mean reward within delta [nats] (`QueryKL`). As
    delta → 0, λ → std(R)/sqrt(2·delta) with ddof 0, and A → R − mean(R). Shapes and zeros as in
    `group_advantages`; groups of equal rewards have λ = 0. In the spirit of QUATRO (arXiv
    2602.04620); the derivation is ours.
    """
    rewards, valid = _floating(rewards).double(), _validity(rewards, valid)
    dual = query_dual(rewards, valid, delta=delta)[:, None]
    best = torch.where(valid, rewards, -math.inf).amax(-1, keepdim=True)
    scaled = torch.where(valid, (rewards - best) / dual, -math.inf)
    log_mean = scaled.logsumexp(-1, keepdim=True) - valid.sum(-1, keepdim=True).log()
    advantages = rewards - best - dual * log_mean
    return torch.where(valid & (dual > 0), advantages, 0.0).float()


def query_dual(rewards: Tensor, valid: Tensor | None = None, *, delta: float = 0.02) -> Tensor:
    """λ of each group in `query_kl_advantages`, [P], in float64 and in the rewards' units.

    The root of KL(tilted ‖ uniform) = delta, tilted ∝ exp(R/λ): the KL falls as λ grows, so that
    bisection finds it. Where even all weight on the best samples is within delta, the dual's
    minimum is at λ = 0; λ is then 1/1000 of the spread of rewards, the least it ever is.
    Raises UserError unless delta is positive.
    """
    if not delta > 0:
        raise UserError(f"method.delta must be positive, got {delta}.")
    rewards, valid = _floating(rewards).double(), _validity(rewards, valid)
    best = torch.where(valid, rewards, -math.inf).amax(-1, keepdim=True)
    below = torch.where(valid, best - rewards, 0.0)
    spread = below.amax(-1)
    below = below / torch.where(spread > 0, spread, 1.0)[:, None]
    count = valid.sum(-1).clamp(min=1)

    def divergence(dual: Tensor) -> Tensor:
        """Of rewards in [−1, 0]: Σ w·log(w·n)."""
        exponents = torch.where(valid, -below / dual[:, None], -math.inf)
        weights = exponents.softmax(-1)
        log_mean = torch.where(valid, exponents.expm1(), 0.0).sum(-1).div(count).log1p()
        return torch.where(valid, weights * exponents, 0.0).sum(-1) - log_mean

    # A KL of rewards within a range of 1 is below 1/(4·λ²).
    low = torch.full_like(spread, LEAST_DUAL).log()
    high = torch.full_like(spread, max(1.0, delta**-0.5)).log()
    for _ in range(100):
        middle = (low + high) / 2
        above = divergence(middle.exp()) > delta
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return torch.where(spread > 0, high.exp() * spread, 0.0)


query_kl_advantages.dual = query_dual  # type: ignore[attr-defined]


def dual_variables(estimator: Callable[..., Tensor], rewards: Tensor) -> Tensor | None:
    """The λ [P] of an estimator that has one per group, as `query_kl_advantages` has; else None.

    A function is one that has by an attribute `dual`, a function of the same arguments.
    """
    solve = getattr(getattr(estimator, "func", estimator), "dual", None)
    found: Tensor | None = solve and solve(rewards, **getattr(estimator, "keywords", {}))
    return found


def has_spread(rewards: Sequence[float]) -> bool:
    """Whether the rewards of a group differ in the precision of advantages: float32 at least."""
    return len(set(_floating(torch.tensor(rewards)).tolist())) > 1


def _centered(rewards: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """R − mean over the valid samples of each group, 0 elsewhere, and the validity used."""
    if rewards.ndim != 2:
        raise ValueError(f"rewards must be [prompts, samples], got {tuple(rewards.shape)}")
    rewards, valid = _floating(rewards), _validity(rewards, valid)
    # Relative to one of them: the rounded mean of equal rewards need not be their value, and the
    # error would be divided by an equally small standard deviation.
    first = rewards.gather(-1, valid.int().argmax(-1, keepdim=True))
    relative = torch.where(valid, rewards - first, 0.0)
    mean = relative.sum(-1, keepdim=True) / valid.sum(-1, keepdim=True).clamp(min=1)
    return torch.where(valid, relative - mean, 0.0), valid


def _validity(rewards: Tensor, valid: Tensor | None) -> Tensor:
    return torch.ones_like(rewards, dtype=torch.bool) if valid is None else valid.bool()


def _floating(rewards: Tensor) -> Tensor:
    return rewards.to(torch.promote_types(rewards.dtype, torch.float32))
