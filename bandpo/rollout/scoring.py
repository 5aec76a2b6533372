"""Generation and scoring, overlapped: groups are judged while the engine samples others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass

from bandpo.advantage import has_spread
from bandpo.errors import UserError
from bandpo.reward import Reward, Score, checked, has_bad_gold, name_of
from bandpo.rollout.engine import RolloutEngine, Sampling
from bandpo.types import Group, Prompt


class EngineDied(Exception):
    """The engine cannot generate any more; its error is the cause."""


class RewardDied(Exception):
    """The reward cannot score any more; its error is the cause."""


class RewardFailed(UserError):
    """The reward gives no scores that could be trained on, and would not if it were asked again."""


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
    EngineDied or RewardDied from the error of the one or the other, and RewardFailed for what is
    not one finite score a completion.
    """
    waiting: dict[Future[list[Score]], Group] = {}

    def judged(future: Future[list[Score]]) -> JudgedGroup:
        group = waiting.pop(future)
        with _scoring(reward, group):
            return JudgedGroup(group, checked(future.result(), reward, group))

    groups = engine.generate(prompts, sampling)
    try:
        while (group := _next(groups)) is not None:
            with _scoring(reward, group):
                waiting[_submitted(reward, group)] = group
            for future in [future for future in waiting if future.done()]:
                yield judged(future)
    except (RewardDied, RewardFailed):
        while getattr(engine, "is_shared", False) and _next(groups) is not None:
            """Other ranks wait for this one in the engine until all groups are there."""
        raise
    while waiting:
        for future in wait(waiting, return_when=FIRST_COMPLETED).done:
            yield judged(future)


def _submitted(reward: Reward, group: Group) -> Future[list[Score]]:
    future = reward.submit(group)
    if not isinstance(future, Future):
        raise UserError(
            f"the reward {name_of(reward)} returned {str(future)[:80]!r} for the samples of "
            f"{group.problem.id}: submit must return a concurrent.futures.Future of its scores"
        )
    return future


def _next(groups: Iterator[Group]) -> Group | None:
    try:
        return next(groups, None)
    except UserError:
        raise
    except Exception as error:
        raise EngineDied(f"{type(error).__name__}: {error}") from error


@contextmanager
def _scoring(reward: Reward, group: Group) -> Iterator[None]:
    """Raises RewardFailed for what the user can mend, and RewardDied for everything else."""
    try:
        yield
    except UserError as error:
        raise RewardFailed(str(error)) from error
    except Exception as error:
        raise RewardDied(
            f"the reward {name_of(reward)} failed on the samples of {group.problem.id}: "
            f"{type(error).__name__}: {error}"
        ) from error


def try_reward(reward: Reward, group: Group) -> None:
    """Scores a group whose scores do not matter; raises RewardFailed unless that goes well."""
    try:
        with _scoring(reward, group):
            checked(_submitted(reward, group).result(), reward, group)
    except RewardDied as error:
        raise RewardFailed(f"{error} (tried on the reference answer)") from error.__cause__
    except RewardFailed as error:
        raise RewardFailed(f"{error} (tried on the reference answer)") from None


def rollout(
    engine: RolloutEngine, reward: Reward, prompts: Sequence[Prompt], sampling: Sampling
) -> list[JudgedGroup]:
    """All groups, judged, in the order of the prompts whatever the order they finished in."""
    judged = {j.group.problem.id: j for j in judged_groups(engine, reward, prompts, sampling)}
    return [judged[prompt.problem.id] for prompt in prompts]
