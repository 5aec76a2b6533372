"""Generation and scoring, overlapped: groups are scored while the engine samples others."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace

from bandpo.advantage import has_spread
from bandpo.errors import UserError
from bandpo.reward import Reward, Score, checked, has_bad_gold, name_of
from bandpo.reward.score import is_death
from bandpo.rollout.engine import RolloutEngine, Sampling
from bandpo.types import Group, Prompt


class EngineDied(Exception):
    """The engine can no longer generate; its error is the cause."""


class RewardDied(Exception):
    """The reward can no longer score; its error is the cause."""


class RewardFailed(UserError):
    """The reward gives no scores that could be trained on, and a retry would not help."""


@dataclass(frozen=True)
class ScoredGroup:
    """A group with one score per completion, in the group's order."""

    group: Group
    scores: tuple[Score, ...]

    @property
    def rewards(self) -> list[float]:
        """The values that advantages are computed from."""
        return [score.value for score in self.scores]

    def summary(self, rank: int = 0) -> GroupSummary:
        """The summary of a group that this rank has sampled."""
        completions = self.group.completions
        return GroupSummary(
            prompt=self.group.prompt,
            lengths=tuple(completion.length for completion in completions),
            truncated=tuple(completion.truncated for completion in completions),
            weight_versions=tuple(completion.weight_version for completion in completions),
            scores=tuple(replace(score, extracted=None) for score in self.scores),
            rank=rank,
            here=self,
        )


@dataclass(frozen=True)
class GroupSummary:
    """A scored group as every rank knows it: without text, tokens and log-probabilities.

    lengths, truncated, weight_versions, scores   [G]: of its completions; lengths in tokens
    rank   the one that has the group
    here   the group itself on that rank, None on all others
    """

    prompt: Prompt
    lengths: tuple[int, ...]
    truncated: tuple[bool, ...]
    weight_versions: tuple[int, ...]
    scores: tuple[Score, ...]
    rank: int = 0
    here: ScoredGroup | None = None

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


def scored_groups(
    engine: RolloutEngine, reward: Reward, prompts: Sequence[Prompt], sampling: Sampling
) -> Iterator[ScoredGroup]:
    """Yields groups as soon as they are scored, in no particular order.

    The engine is called without prompts too: it may need this rank for those of others. Raises
    EngineDied or RewardDied from the error of the one or the other, and RewardFailed unless the
    reward gives one finite score per completion.
    """
    waiting: dict[Future[list[Score]], Group] = {}

    def scored(future: Future[list[Score]]) -> ScoredGroup:
        group = waiting.pop(future)
        with _scoring(reward, group):
            return ScoredGroup(group, checked(future.result(), reward, group))

    groups = engine.generate(prompts, sampling)
    try:
        while (group := _next(groups)) is not None:
            with _scoring(reward, group):
                waiting[_submitted(reward, group)] = group
            for future in [future for future in waiting if future.done()]:
                yield scored(future)
    except (RewardDied, RewardFailed):
        while getattr(engine, "is_shared", False) and _next(groups) is not None:
            """Other ranks wait for this one in the engine until all groups are there."""
        raise
    while waiting:
        for future in wait(waiting, return_when=FIRST_COMPLETED).done:
            yield scored(future)


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
        _without_frames(error)
        raise EngineDied(f"{type(error).__name__}: {error}") from error


def _without_frames(error: BaseException) -> None:
    """Replaces the tracebacks of an error and its causes by a note with their text.

    Their frames and closures hold the engine's memory, and no other engine could start meanwhile.
    """
    text = "".join(traceback.format_exception(error))
    cause: BaseException | None = error
    while cause is not None:
        cause.__traceback__ = None
        cause = cause.__cause__ or cause.__context__
    error.add_note(text)


@contextmanager
def _scoring(reward: Reward, group: Group) -> Iterator[None]:
    """Raises RewardDied where its workers have died, and RewardFailed for its own errors."""
    try:
        yield
    except UserError as error:
        raise RewardFailed.caused(str(error), error) from error
    except Exception as error:
        message = (
            f"the reward {name_of(reward)} failed on the samples of {group.problem.id}: "
            f"{type(error).__name__}: {error}"
        )
        if is_death(error):
            raise RewardDied(message) from error
        raise RewardFailed.caused(message, error) from error


def try_reward(reward: Reward, group: Group) -> None:
    """Scores a group whose scores do not matter; raises RewardFailed unless that goes well."""
    try:
        with _scoring(reward, group):
            checked(_submitted(reward, group).result(), reward, group)
    except RewardDied as error:
        raise RewardFailed(f"{error} (tried on the reference answer)") from error.__cause__
    except RewardFailed as error:
        raise RewardFailed.caused(f"{error} (tried on the reference answer)", error) from None


def rollout(
    engine: RolloutEngine, reward: Reward, prompts: Sequence[Prompt], sampling: Sampling
) -> list[ScoredGroup]:
    """All groups, scored, in the order of the prompts whatever the order they finished in."""
    scored = {j.group.problem.id: j for j in scored_groups(engine, reward, prompts, sampling)}
    return [scored[prompt.problem.id] for prompt in prompts]
