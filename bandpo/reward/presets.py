"""The rewards of `configs/reward/`: flat keys in the configuration, a composition in Python.

Configurations name these functions, and their keys are part of a run's identity.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bandpo.errors import UserError
from bandpo.reward.disagreement import Compared
from bandpo.reward.math import MathReward, MathVerifier
from bandpo.reward.release import ReleaseReward
from bandpo.reward.score import Reward
from bandpo.reward.shaping import FormatBonus, Overlong, Shaped, Term


def math_reward(
    *,
    max_tokens: int | None = None,
    overlong: Mapping[str, float] | None = None,
    format_bonus: float = 0.0,
    **verifier: Any,
) -> Reward:
    """math-verify's verdict; `verifier` are the arguments of MathVerifier."""
    return _shaped(MathReward(MathVerifier(**verifier)), max_tokens, overlong, format_bonus)


def release_reward(
    *,
    max_tokens: int | None = None,
    overlong: Mapping[str, float] | None = None,
    format_bonus: float = 0.0,
    **values: float,
) -> Reward:
    """The string rule of the paper's release; `values` are the arguments of ReleaseReward."""
    return _shaped(ReleaseReward(**values), max_tokens, overlong, format_bonus)


def both_rewards(**settings: Any) -> Compared:
    """`math_reward` with these settings, and a report on where the release's rule differs."""
    return Compared(math_reward(**settings), ReleaseReward())


def _shaped(
    reward: Reward,
    max_tokens: int | None,
    overlong: Mapping[str, float] | None,
    format_bonus: float,
) -> Reward:
    """The reward with the terms that a configuration asks for, or itself where it asks for none.

    Raises UserError where `overlong` lacks a known limit.
    """
    terms: list[Term] = []
    if overlong is not None:
        if max_tokens is None:
            raise UserError("reward.overlong needs reward.max_tokens, the rollout's token limit")
        if not {"buffer"} <= overlong.keys() <= {"buffer", "penalty"}:
            raise UserError(
                f"reward.overlong has the keys {sorted(overlong)}: it takes buffer, in tokens, "
                "and penalty"
            )
        terms.append(Overlong(max_tokens, **overlong))  # type: ignore[arg-type]
    if format_bonus:
        terms.append(FormatBonus(format_bonus))
    return Shaped(reward, terms) if terms else reward
