"""Group-relative advantages: a sample is compared with the other samples of its prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# Keeps groups of equal rewards at advantage 0 instead of 0/0; the value of BandPO's release.
STD_EPSILON = 1e-6


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


def has_spread(rewards: Sequence[float]) -> bool:
    """Whether the rewards of a group differ in the precision of advantages: float32 at least."""
    return len(set(_floating(torch.tensor(rewards)).tolist())) > 1


def _centered(rewards: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """R − mean over the valid samples of each group, 0 elsewhere, and the validity used."""
    if rewards.ndim != 2:
        raise ValueError(f"rewards must be [prompts, samples], got {tuple(rewards.shape)}")
    rewards = _floating(rewards)
    valid = torch.ones_like(rewards, dtype=torch.bool) if valid is None else valid.bool()
    # Relative to one of them: the rounded mean of equal rewards need not be their value, and the
    # error would be divided by an equally small standard deviation.
    first = rewards.gather(-1, valid.int().argmax(-1, keepdim=True))
    relative = torch.where(valid, rewards - first, 0.0)
    mean = relative.sum(-1, keepdim=True) / valid.sum(-1, keepdim=True).clamp(min=1)
    return torch.where(valid, relative - mean, 0.0), valid


def _floating(rewards: Tensor) -> Tensor:
    return rewards.to(torch.promote_types(rewards.dtype, torch.float32))
