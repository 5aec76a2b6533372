"""The sampler that draws by a rule."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from bandpo.config.targets import reason
from bandpo.data.sampler import PromptSampler, Sampler
from bandpo.data.sampling.difficulty import RESTING
from bandpo.data.sampling.history import History
from bandpo.data.sampling.rules import BySource, Epochs, Request, Rule
from bandpo.data.sampling.streams import Streams
from bandpo.errors import UserError
from bandpo.types import Prompt


class RuledSampler(Sampler):
    """Draws prompts by a rule, from the results of the steps before (`history`)."""

    def __init__(
        self, prompts: Sequence[Prompt], seed: int, rule: Rule, history: History, per_step: int
    ) -> None:
        """As `Sampler`, for `per_step` prompts per step; who records results shares `history`."""
        super().__init__(prompts, seed)
        self.rule, self._history = rule, history
        self._epoch = len(prompts) / per_step
        self._pool = sorted(self._by_id)  # the order of the file does not matter
        self._sources = {id: prompt.problem.source for id, prompt in self._by_id.items()}
        self._streams = Streams(self._pool, seed)
        self._returned: set[str] = set()
        self._drawn_for, self._drawn = 0, set[str]()

    def require(self, n: int) -> None:
        """As `Sampler.require`, for each source too where they have weights."""
        super().require(n)
        if isinstance(self.rule, BySource):
            self.rule.require(n, Counter(self._sources.values()))

    def next(self, n: int, without: Collection[str] = ()) -> list[Prompt]:
        """As `Sampler.next`."""
        self.require(n)
        excluded = set(without)
        pool = [id for id in self._pool if id not in excluded]
        step = self._history.step + 1
        if self._drawn_for != step:
            self._drawn_for, self._drawn = step, set()
        request = Request(
            step,
            self._epoch,
            self._history,
            self._streams,
            self._sources,
            drawn=frozenset(self._drawn),
            returned=self._returned,
        )
        drawn = self.rule(n, pool, request)
        self._drawn.update(drawn)
        return [self._by_id[id] for id in drawn]

    def take_notes(self) -> list[str]:
        """A line on problems that returned early."""
        returned, self._returned = self._returned, set()
        if not returned:
            return []
        return [
            f"{len(returned)} problems that rest (data.sampler) return early, those that have been "
            "away longest: fewer others are left than the step needs"
        ]

    def states(self) -> dict[str, int]:
        """How many problems the next step has in each state."""
        counts = dict.fromkeys(self.rule.states, 0)
        for id in self._pool:
            counts[self.state(self._history, id)] += 1
        return counts

    def state(self, history: History, id: str) -> str:
        """As `Sampler.state`, by the rule."""
        results = history.of(id)
        return self.rule.state(results, (history.step + 1 - results.step) / self._epoch)

    def had_rested(self, ids: Iterable[str]) -> int:
        """How many of these problems were put to rest after their last group."""
        found = (self._history.of(id) for id in set(ids))
        return sum(self.rule.state(results, 0.0) in RESTING for results in found)

    def state_dict(self) -> dict[str, Any]:
        """The memory of the rule, beside what identifies the data."""
        return {"streams": self._streams.state_dict(), **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As `Sampler.load_state_dict`."""
        self._require_same(state)
        self._streams.load_state_dict(state["streams"])


def sampler_of(
    target: Mapping[str, Any] | None,
    weights: Mapping[str, float],
    prompts: Sequence[Prompt],
    seed: int,
    history: History,
    per_step: int,
) -> Sampler:
    """The sampler of a configuration: `data.sampler`, and the weights of its sources.

    Raises UserError where `target` is no rule.
    """
    if target is None and not weights:
        return PromptSampler(prompts, seed)
    rule = Epochs() if target is None else rule_of(target)
    rule = BySource(weights, rule) if weights else rule
    return RuledSampler(prompts, seed, rule, history, per_step)


def rule_of(target: Mapping[str, Any]) -> Rule:
    """The rule that a `_target_` tree means; raises UserError where it means none."""
    try:
        rule = instantiate(target)
    except InstantiationException as error:
        raise UserError(f"data.sampler cannot be built: {reason(error)}") from error
    if not isinstance(rule, Rule):
        raise UserError(
            f"data.sampler: {target.get('_target_')} is no rule of drawing; those of "
            "bandpo.data.sampling are Rest, Pools, ByPassRate and Epochs (docs/data.md)"
        )
    return rule
