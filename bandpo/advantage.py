"""Group-relative advantages: a sample is compared with the other samples of its prompt."""

from __future__ import annotations

from collections.abc import Sequence

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
