"""The rewards of `configs/reward/`: flat keys on one side, a composition of values on the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bandpo.reward.disagreement import Compared
from bandpo.reward.math import MathReward, MathVerifier
from bandpo.reward.release import ReleaseReward
from bandpo.reward.score import Reward
from bandpo.reward.shaping import shaped


def math_reward(
    *,
    max_tokens: int | None = None,
    overlong: Mapping[str, float] | None = None,
    format_bonus: float = 0.0,
    **verifier: Any,
) -> Reward:
    """math-verify's verdict; `verifier` are the arguments of MathVerifier."""
    reward = MathReward(MathVerifier(**verifier))
    return shaped(reward, max_tokens=max_tokens, overlong=overlong, format_bonus=format_bonus)


def release_reward(
    *,
    correct: float = 1.0,
    wrong: float = -1.0,
    max_tokens: int | None = None,
    overlong: Mapping[str, float] | None = None,
    format_bonus: float = 0.0,
) -> Reward:
    """The string rule of the paper's release."""
    reward = ReleaseReward(correct=correct, wrong=wrong)
    return shaped(reward, max_tokens=max_tokens, overlong=overlong, format_bonus=format_bonus)


def both_rewards(
    *,
    max_tokens: int | None = None,
    overlong: Mapping[str, float] | None = None,
    format_bonus: float = 0.0,
    **verifier: Any,
) -> Compared:
    """math-verify's verdict, with a report on where the release's rule differs."""
    reward = math_reward(
        max_tokens=max_tokens, overlong=overlong, format_bonus=format_bonus, **verifier
    )
    return Compared(reward, ReleaseReward())
