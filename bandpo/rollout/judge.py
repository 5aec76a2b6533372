"""Generation and scoring, overlapped: groups are judged while the engine samples others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass

from bandpo.advantage import has_spread
from bandpo.errors import UserError
from bandpo.reward import Reward, Score, has_bad_gold
from bandpo.rollout.engine import RolloutEngine, Sampling
from bandpo.types import Group, Prompt


class EngineDied(Exception):
    """The engine cannot generate any more; its error is the cause."""


class RewardDied(Exception):
    """The reward cannot score any more; its error is the cause."""


@dataclass(frozen=True)
class JudgedGroup:
    """A group with one score a completion, in the group's order."""

    group: Group
    scores: tuple[Score, ...]

    @property
    def rewards(self) -> list[float]:
        """The values that advantages are computed from."""
        return [score.value for score in self.scores]

    @property
    def usable(self) -> bool:
        """Whether the group may be trained on: its reference answer could be read."""
        return not has_bad_gold(self.scores)

    @property
    def is_mixed(self) -> bool:
        """Whether some answers are right and others wrong (0 < correct < G in DAPO, equation 8)."""
        return len({score.correct for score in self.scores}) > 1

    @property
    def has_spread(self) -> bool:
        """Whether rewards differ; without spread every advantage is 0."""
        return has_spread(self.rewards)


def judged_groups(
    engine: RolloutEngine, reward: Reward, prompts: Sequence[Prompt], sampling: Sampling
) -> Iterator[JudgedGroup]:
    """Yields groups as soon as they are judged, in no particular order.

    Without prompts too the engine is asked: it may need this rank for those of others. Raises
    EngineDied or RewardDied from the error of the one or the other.
    """
    waiting: dict[Future[list[Score]], Group] = {}

    def judged(future: Future[list[Score]]) -> JudgedGroup:
        with _failing_as(RewardDied):
            return JudgedGroup(waiting.pop(future), tuple(future.result()))

    groups = engine.generate(prompts, sampling)
    while (group := _next(groups)) is not None:
        with _failing_as(RewardDied):
            waiting[reward.submit(group)] = group
        for future in [future for future in waiting if future.done()]:
            yield judged(future)
    while waiting:
        for future in wait(waiting, return_when=FIRST_COMPLETED).done:
            yield judged(future)


def _next(groups: Iterator[Group]) -> Group | None:
    with _failing_as(EngineDied):
        return next(groups, None)


@contextmanager
def _failing_as(kind: type[EngineDied | RewardDied]) -> Iterator[None]:
    """Says whose failure it is; what a user can mend is left as it is."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise kind(f"{type(error).__name__}: {error}") from error


def rollout(
    engine: RolloutEngine, reward: Reward, prompts: Sequence[Prompt], sampling: Sampling
) -> list[JudgedGroup]:
    """All groups, judged, in the order of the prompts whatever the order they finished in."""
    judged = {j.group.problem.id: j for j in judged_groups(engine, reward, prompts, sampling)}
    return [judged[prompt.problem.id] for prompt in prompts]
