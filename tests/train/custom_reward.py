"""A user's reward, as `_target_` finds it: the share of tokens from the first half of the bytes."""

import torch

from bandpo.advantage import group_advantages


def low_bytes(problem, completion) -> float:
    """Between 0 and 1."""
    tokens = completion.token_ids
    return sum(token < 130 for token in tokens) / len(tokens)


class FailsOnce:
    """`low_bytes`, but for one error after so many completions."""

    seen = 0  # of the process: what replaces this reward goes on counting

    def __init__(self, after: int) -> None:
        self._after = after

    def __call__(self, problem, completion) -> float:
        """Between 0 and 1."""
        FailsOnce.seen += 1
        if FailsOnce.seen == self._after + 1:
            raise OSError("the verifier fell over")
        return low_bytes(problem, completion)


class SickAdvantages:
    """GRPO's advantages, until so many steps were taken; then the first group's are NaN."""

    def __init__(self, after: int) -> None:
        self._after, self._steps = after, 0

    def __call__(self, rewards):
        """[P, G] → [P, G]."""
        self._steps += 1
        advantages = group_advantages(rewards)
        if self._steps > self._after:
            advantages[0] = torch.nan
        return advantages
