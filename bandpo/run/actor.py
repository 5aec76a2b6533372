"""The actor of a run: samples groups with the learner's weights and has them scored."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Generic, TypeVar

from bandpo.config.sections.rollout import RolloutConfig
from bandpo.config.sections.sampling import stop_ids, stop_texts
from bandpo.learner.learner import DeepSpeedLearner
from bandpo.ranks.collectives import Ranks
from bandpo.reward import Reward
from bandpo.rollout.engine import RolloutEngine, Sampling
from bandpo.rollout.groups.truncation import Truncation
from bandpo.rollout.scoring import (
    EngineDied,
    GroupSummary,
    RewardDied,
    RewardFailed,
    ScoredGroup,
    rollout,
)
from bandpo.run.probe import prove_weights
from bandpo.types import Group, Prompt

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Replaceable(Generic[T]):
    """A part of a run that is made anew, once, when it has died."""

    def __init__(self, name: str, make: Callable[[], T], close: Callable[[T], None]) -> None:
        self._name, self._make, self._close = name, make, close
        self._part: T | None = make()
        self.was_replaced = False

    @property
    def current(self) -> T:
        """The part in use."""
        assert self._part is not None
        return self._part

    def replace(self, death: Exception | None) -> None:
        """Closes the part that died and makes another; `death` is None if it died elsewhere.

        Raises RuntimeError from the cause of death if it is the second one.
        """
        if self.was_replaced:
            raise RuntimeError(f"the {self._name} died a second time") from death
        self.was_replaced = True
        reason = death or "on another rank"
        logger.warning("the %s died and is started once more: %s", self._name, reason)
        with suppress(Exception):  # a dead part may fail to close
            self.close()
        self._part = self._make()

    def close(self) -> None:
        """Ends the part in use; nothing refers to it afterwards."""
        part, self._part = self._part, None
        if part is not None:
            self._close(part)


class Actor:
    """An engine under the learner's weights and the reward for what it samples.

    `weight_version` counts the syncs. Every method is collective.
    """

    def __init__(
        self,
        config: RolloutConfig,
        engine: Replaceable[RolloutEngine],
        reward: Replaceable[Reward],
        learner: DeepSpeedLearner,
        ranks: Ranks,
        rollout_ranks: Ranks,
        *,
        answer: Group,
        tolerance: float,
        context: int,
        weight_version: int,
    ) -> None:
        """`weight_version` is that of the learner's weights, which the first sync hands over.

        A sync before there are samples is proved on `answer`, as `prove_weights` proves it with
        `tolerance` and `context`. `rollout_ranks` are the collectives of the thread that samples.
        """
        self._config, self._truncation = config, Truncation.of(config)
        self._engine, self._reward, self._learner = engine, reward, learner
        self._ranks, self._rollout_ranks = ranks, rollout_ranks
        self._answer, self._tolerance, self._context = answer, tolerance, context
        self.weight_version = weight_version - 1
        self.sampling = Sampling(
            n=config.group_size,
            temperature=config.temperature,
            top_p=config.top_p,
            top_k=config.top_k,
            max_tokens=config.max_tokens,
            stop=stop_texts(config.stop),
            stop_token_ids=stop_ids(config.stop),
        )

    @property
    def engine(self) -> RolloutEngine:
        """The engine in use."""
        return self._engine.current

    @property
    def reward(self) -> Reward:
        """The reward in use."""
        return self._reward.current

    def rollout(self, prompts: Sequence[Prompt]) -> list[ScoredGroup]:
        """The scored groups of this rank's prompts.

        An engine or a reward that dies on any rank is replaced, once per run; prompts carry their
        seeds, so that the groups are those that it would have given. The run ends where that
        cannot be done: with `rollout.lag` beside the learner's updates, and where ranks share an
        engine, since the others wait in it for the one that failed. Raises RewardFailed on every
        rank where a reward fails by itself, dies again, or gives what is no score, on any.
        """
        outcome = self._attempt(prompts)
        while self._rollout_ranks.any(not isinstance(outcome, list)):
            self._rollout_ranks.raise_any(outcome if isinstance(outcome, RewardFailed) else None)
            death = outcome if isinstance(outcome, EngineDied) else None
            if self._rollout_ranks.any(death is not None):
                self._engine.replace(death)
                self.weight_version -= 1  # the same weights are sent once more
                self.sync()
            if isinstance(outcome, RewardDied):
                self._reward.replace(outcome)
            if not isinstance(outcome, list):
                outcome = self._attempt(prompts)
        assert isinstance(outcome, list)
        return outcome

    def _attempt(
        self, prompts: Sequence[Prompt]
    ) -> list[ScoredGroup] | EngineDied | RewardDied | RewardFailed:
        """The groups, or the failure that the ranks have to agree on."""
        try:
            scored = rollout(self.engine, self.reward, prompts, self.sampling)
            return [self._truncation.penalised(item) for item in scored]
        except EngineDied as error:
            if not self._can_replace:
                raise
            return error
        except RewardDied as error:
            replaceable = self._can_replace and not self._reward.was_replaced
            return error if replaceable else RewardFailed(str(error))
        except RewardFailed as error:
            return error

    @property
    def _can_replace(self) -> bool:
        """Whether the ranks can stop together to replace a part."""
        return self._config.lag == 0 and self._config.engine.get("tensor_parallel_size", 1) == 1

    def sync(self, scored: Sequence[GroupSummary] = ()) -> dict[str, float]:
        """Sends the learner's weights to the engine and proves that they arrived.

        Both score a few samples of the step. Raises RuntimeError where they differ by more than
        the tolerance.
        """
        self._learner.rest()
        self.engine.wake()
        self.weight_version += 1
        self.engine.load_weights(self._learner.weights(), self.weight_version)
        groups = [item.here.group for item in scored if item.here] or [self._answer]
        group = groups[self.weight_version % len(groups)]
        gap = prove_weights(
            self.engine, self._learner, group, self._ranks, self._tolerance, self._context
        )
        return {"sync/probe_logprob_mean": gap.mean, "sync/probe_logprob_max": gap.largest}
