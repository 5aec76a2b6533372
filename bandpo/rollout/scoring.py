"""Generation and scoring, overlapped: groups are scored while the engine samples others."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bandpo.advantage import RewardParts, has_spread, takes_parts
from bandpo.errors import UserError, listed
from bandpo.reward import Reward, Score, checked, has_bad_gold, name_of
from bandpo.reward.score import described, is_death, shown
from bandpo.rollout.engine import RolloutEngine, Sampling
from bandpo.types import Group, Prompt

logger = logging.getLogger(__name__)

PATIENCE_S = 600.0
"""A reward that scores nothing for so long is reported, again and again."""


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


def advantages_of(
    estimator: Callable[..., Tensor], groups: Sequence[GroupSummary], group_size: int
) -> list[list[float]]:
    """The advantages [P, G] that an estimator gives to groups of one size.

    It gets their rewards [P, G], or their parts if it takes those (`bandpo.advantage.from_parts`).
    """
    rewards = torch.tensor([item.rewards for item in groups]).reshape(-1, group_size)
    return estimator(_parts(groups, rewards) if takes_parts(estimator) else rewards).tolist()


def _parts(groups: Sequence[GroupSummary], rewards: Tensor) -> RewardParts:
    """Raises UserError where the rewards do not all have the same parts with the same weights."""
    parts = [[score.parts for score in item.scores] for item in groups]
    kinds: dict[tuple[tuple[str, float], ...], str] = {}
    for item, rows in zip(groups, parts, strict=True):
        for row in rows:
            kinds.setdefault(tuple((p.name, p.weight) for p in row), item.prompt.problem.id)
    if len(kinds) > 1:
        (one, first), (other, second) = list(kinds.items())[:2]
        raise UserError(
            f"method.advantage takes the parts of rewards, which differ: {_listed(one)} for "
            f"{first}, {_listed(other)} for {second}; every sample must have the same"
        )
    named = next(iter(kinds), ())
    if not named:
        return RewardParts.whole(rewards)
    values = torch.tensor([[[part.value for part in row] for row in rows] for rows in parts])
    names, weights = zip(*named, strict=True)
    return RewardParts(names, values, torch.tensor(weights))


def _listed(named: Sequence[tuple[str, float]]) -> str:
    return ", ".join(f"{weight:g} · {name}" for name, weight in named) or "no parts"


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
        for future in _some_done(waiting, reward):
            yield scored(future)


def _some_done(
    waiting: Mapping[Future[list[Score]], Group], reward: Reward
) -> set[Future[list[Score]]]:
    """Those that are done, at least one; a long wait is reported."""
    while not (done := wait(waiting, PATIENCE_S, FIRST_COMPLETED).done):
        logger.warning(
            "the reward %s has scored nothing for %.0f minutes; it is still waited for, on %s",
            *(name_of(reward), PATIENCE_S / 60),
            listed([group.problem.id for group in waiting.values()]),
        )
    return done


def _submitted(reward: Reward, group: Group) -> Future[list[Score]]:
    future = reward.submit(group)
    if not isinstance(future, Future):
        raise UserError(
            f"the reward {name_of(reward)} returned {shown(future)} for the samples of "
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
    except (Exception, SystemExit) as error:  # an exit would end the run without a word
        message = (
            f"the reward {name_of(reward)} failed on the samples of {group.problem.id}: "
            f"{described(error)}"
        )
        if is_death(error):
            raise RewardDied(message) from error
        raise RewardFailed.caused(message, error) from error


def try_reward(reward: Reward, group: Group) -> None:
    """Scores a group whose scores do not matter; raises RewardFailed unless that goes well."""
    try:
        with _scoring(reward, group):
            (future,) = _some_done({_submitted(reward, group): group}, reward)
            checked(future.result(), reward, group)
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
