"""Rewards: the math verifier, the release's string rule, shaping and their composition."""

from bandpo.reward.disagreement import Compared, DisagreementReport, disagreement_report
from bandpo.reward.math import MathReward, MathVerifier, bad_golds, verifier_version
from bandpo.reward.presets import both_rewards, math_reward, release_reward
from bandpo.reward.release import ReleaseReward
from bandpo.reward.score import (
    Part,
    Reward,
    Score,
    Status,
    checked,
    has_bad_gold,
    name_of,
    part_metrics,
    verifier_counts,
)
from bandpo.reward.shaping import FormatBonus, FunctionReward, Overlong, Shaped, WeightedSum

__all__ = [
    "Compared",
    "DisagreementReport",
    "FormatBonus",
    "FunctionReward",
    "MathReward",
    "MathVerifier",
    "Overlong",
    "Part",
    "ReleaseReward",
    "Reward",
    "Score",
    "Shaped",
    "Status",
    "WeightedSum",
    "bad_golds",
    "both_rewards",
    "checked",
    "disagreement_report",
    "has_bad_gold",
    "math_reward",
    "name_of",
    "part_metrics",
    "release_reward",
    "verifier_counts",
    "verifier_version",
]
