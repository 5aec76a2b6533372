"""The rollout of each step in turn, sampled on demand or prefetched during the step before."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from statistics import fmean

from bandpo.rollout.draws import Rollout
from bandpo.rollout.scoring import RewardFailed

Collect = Callable[[int], Rollout]
"""Samples and scores the groups of a step, of all ranks."""


class Rollouts:
    """The rollout of each step, one step off policy with `lag` 1.

    With lag 0 a step's rollout is sampled when `next` asks for it, with the newest weights. With
    lag 1, `next` returns step k's rollout and starts step k+1's on a thread: the engine samples it
    with the weights of step k−1 while the learner makes those of step k, and `settle` waits for the
    rest of it before the engine loads them.
    """

    def __init__(
        self,
        version: Callable[[], int],
        collect: Collect,
        last: int,
        lag: int = 0,
        waiting: Rollout | None = None,
    ) -> None:
        """`waiting` is the first step's rollout where a checkpoint holds it; `last` the last step.

        `version` returns the version of the engine's weights.
        """
        self._version, self._collect, self._last, self._lag = version, collect, last, lag
        self._coming: Future[Rollout] | None = None
        self._waiting = waiting
        self._failure: RewardFailed | None = None
        self._metrics: dict[str, float] = {}
        self._seconds = 0.0

    @property
    def waiting(self) -> Rollout | None:
        """The next step's rollout once settled, which a checkpoint must hold; None with lag 0."""
        return self._waiting

    def next(self, step: int) -> Rollout:
        """The rollout of a step; steps must be asked for in turn."""
        self.settle()
        if self._failure is not None:
            raise self._failure
        rollout = self._collect(step) if self._waiting is None else self._waiting
        self._waiting = None
        now = self._version()
        ages = [now - version for group in rollout.groups for version in group.weight_versions]
        self._metrics = {"rollout/lag": fmean(ages) if ages else 0.0}
        if self._lag and step < self._last:
            thread = ThreadPoolExecutor(1, "rollout")
            self._coming = thread.submit(self._timed, step + 1)
            thread.shutdown(wait=False)  # ends with the rollout
        return rollout

    def _timed(self, step: int) -> Rollout:
        begun = time.perf_counter()
        try:
            return self._collect(step)
        finally:
            self._seconds = time.perf_counter() - begun

    def settle(self) -> None:
        """Waits for the rollout in progress, so that the engine is idle."""
        if self._coming is None:
            return
        begun = time.perf_counter()
        wait([self._coming])
        coming, self._coming = self._coming, None
        if isinstance(failure := coming.exception(), RewardFailed):
            self._failure = (
                failure  # raised by `next`: the current step, which does not need it, ends first
            )
            return
        self._waiting = coming.result()
        waited = time.perf_counter() - begun
        self._metrics["rollout/overlap_s"] = max(0.0, self._seconds - waited)

    def metrics(self) -> dict[str, float]:
        """Metrics of the step that `next` returned last.

        `rollout/lag`: mean number of weight syncs between the sampling of its tokens and the policy
        that learns from them; `rollout/overlap_s` (lag 1): seconds of the next rollout that the
        learner did not wait for.
        """
        return self._metrics
