"""Rewards of users that go wrong, at once or after so many completions."""

from concurrent.futures import Future

import custom_reward

from bandpo.reward import Score

calls = {"healthy until": 10**9, "seen": 0}


def late(problem, completion, fault):
    """`low_bytes`, until as many completions were seen as `calls` says."""
    calls["seen"] += 1
    if calls["seen"] <= calls["healthy until"]:
        return custom_reward.low_bytes(problem, completion)
    return broken(problem, completion) if fault == "raises" else None


def nothing(problem, completion):
    """Forgets to return."""


def not_a_number(problem, completion):
    """0/0."""
    return float("nan")


def broken(problem, completion):
    """Raises."""
    return 1 / 0


class OfItsOwn:
    """A reward with something else where its scores should be."""

    def __init__(self, fault):
        self._fault = fault

    def submit(self, group):
        """The future, or none."""
        scores = [Score(1.0, "correct", None, 0.0) for _ in group.completions]
        future = Future()
        if self._fault == "no future":
            return scores
        if self._fault == "one too few":
            scores.pop()
        if self._fault == "numbers":
            scores = [1.0] * len(scores)
        if self._fault == "sick":
            scores[1] = Score(float("nan"), "correct", None, 0.0)
        if self._fault == "raises":
            future.set_exception(LookupError("no such file"))
            return future
        future.set_result(scores)
        return future

    def close(self):
        """Nothing to end."""
