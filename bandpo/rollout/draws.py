"""The prompts of a step, drawn until enough of their groups are worth training on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, pstdev
from typing import Any

from bandpo.config.sections.rollout import RolloutConfig
from bandpo.data.sampler import Sampler
from bandpo.ranks.collectives import Ranks
from bandpo.reward import part_metrics, verifier_counts
from bandpo.rollout.groups.truncation import Truncation
from bandpo.rollout.scoring import GroupSummary, ScoredGroup
from bandpo.rollout.seeds import Seeds
from bandpo.types import Prompt


@dataclass(frozen=True)
class Rollout:
    """The groups of all ranks that a step trains on, and metrics of all groups drawn for it.

    Every rank knows all of them, and holds its own.
    """

    groups: list[GroupSummary]
    metrics: dict[str, float] = field(default_factory=dict)


Observe = Callable[[Sequence[GroupSummary]], Mapping[str, float]]
"""Takes all groups that were drawn for a step; returns metrics."""

_FILTERS: Mapping[Any, Callable[[GroupSummary], bool]] = {
    False: lambda item: True,
    "accuracy": lambda item: item.usable and item.is_mixed,
    "reward": lambda item: item.usable and item.has_spread,
}


class Draws:
    """The prompts of one step and their groups: equal on all ranks, whatever the number of ranks.

    With `rollout.filter_groups` batches are drawn until enough groups pass the filter, or
    `rollout.max_refills` batches were added (DAPO, section 3.2, dynamic sampling); if there are
    still too few, other groups fill the step up.
    """

    def __init__(
        self,
        settings: RolloutConfig,
        sampler: Sampler,
        seeds: Seeds,
        ranks: Ranks,
        observe: Observe = lambda drawn: {},
    ) -> None:
        """`observe` gets the groups of all ranks when the last one is there."""
        self._settings, self._sampler = settings, sampler
        self._seeds, self._ranks, self._observe = seeds, ranks, observe
        self._truncation = Truncation.of(settings)
        self._batches = 0
        self._drawn: list[GroupSummary] = []  # of all ranks, in the order of the prompts

    @property
    def kept(self) -> list[GroupSummary]:
        """The groups so far that pass the filter, in the order in which they were drawn."""
        return [i for i in self._drawn if self._passes(i, self._settings.filter_groups)]

    def _passes(self, item: GroupSummary, filtered: Any) -> bool:
        passes = _FILTERS[filtered]
        return passes(item) and passes(self._truncation.compared(item))

    @property
    def lacking(self) -> int:
        """How many groups are missing."""
        return max(0, self._settings.prompts_per_step - len(self.kept))

    @property
    def ended(self) -> bool:
        """Whether no group is missing, or no further batch may be drawn."""
        return self._batches > 0 and (
            self.lacking == 0 or self._batches > self._settings.max_refills
        )

    def next_prompts(self) -> list[Prompt]:
        """This rank's share of the next batch, with seeds; none whose group is already kept."""
        kept = {item.prompt.problem.id for item in self.kept}
        prompts = self._sampler.next(self._settings.prompts_per_step, without=kept)
        seeds = [self._seeds.take(prompt.problem.id, self._batches) for prompt in prompts]
        self._batches += 1
        return self._ranks.share(
            [replace(p, seed=seed) for p, seed in zip(prompts, seeds, strict=True)]
        )

    def add(self, scored: Sequence[ScoredGroup]) -> None:
        """Adds this rank's scored groups of the batch; collective."""
        rank = self._ranks.rank
        own = [item.summary(rank) for item in scored]
        every = self._ranks.gather_interleaved([replace(summary, here=None) for summary in own])
        left = iter(own)
        self._drawn += [next(left) if item.rank == rank else item for item in every]

    def notes(self) -> list[str]:
        """Messages for the user about a step with too few groups, or none, to learn from."""
        found = self._sampler.take_notes()
        settings = self._settings
        if self.lacking and settings.filter_groups:
            wanted = {"accuracy": "right and wrong answers", "reward": "different rewards"}
            found.append(
                f"{len(self.kept)} of {settings.prompts_per_step} groups had "
                f"{wanted[settings.filter_groups]} after {settings.max_refills} refills "
                f"(rollout.filter_groups={settings.filter_groups}); other groups fill the step up"
            )
        if not any(any(self._truncation.learned(item)) for item in self._drawn):
            found.append(
                f"every completion was cut off at rollout.max_tokens={settings.max_tokens} and is "
                "masked (rollout.truncated=mask), so nothing is learned from it; raise the limit"
            )
        elif not any(self._passes(item, "reward") for item in self._drawn):
            found.append(
                "the rewards of every group are equal, so nothing is learned from it; the problems "
                "are too hard or too easy, completions are cut off, or the verifier reads no answer"
            )
        return found

    def rollout(self) -> Rollout:
        """The groups to train on, with metrics of all that were drawn."""
        chosen = {item.prompt.problem.id: item for item in self.kept}
        for item in reversed(self._drawn):  # a problem that was drawn again counts once
            chosen.setdefault(item.prompt.problem.id, item)
        groups = list(chosen.values())[: self._settings.prompts_per_step]
        filtered = groups if self._settings.filter_groups else None
        metrics = rollout_metrics(self._drawn, filtered) | self._truncation.metrics(groups)
        return Rollout(groups, metrics | dict(self._observe(self._drawn)))


def rollout_metrics(
    drawn: Sequence[GroupSummary], kept: Sequence[GroupSummary] | None = None
) -> dict[str, float]:
    """Rewards, lengths and the verifier's verdicts of all groups drawn for a step.

    All of them, so that methods with and without a filter can be compared; the same metrics of
    the groups that a filter has `kept` are named `kept/…`.
    """
    trained = drawn if kept is None else kept
    tokens = {
        name: sum(sum(item.lengths) for item in groups)
        for name, groups in (("drawn", drawn), ("trained", trained))
    }
    scores = [score for item in drawn for score in item.scores]
    return {
        **_rewards_and_lengths(drawn),
        **({f"kept/{k}": v for k, v in _rewards_and_lengths(kept).items()} if kept else {}),
        "rollout/groups": float(len(drawn)),
        "rollout/groups_kept": float(len(trained)),
        "rollout/tokens_discarded": float(tokens["drawn"] - tokens["trained"]),
        "rollout/unusable_groups": float(sum(not item.usable for item in drawn)),
        **{name: float(count) for name, count in verifier_counts(scores).items()},
    }


def _rewards_and_lengths(scored: Sequence[GroupSummary]) -> dict[str, float]:
    scores = [score for item in scored for score in item.scores]
    rewards = [score.value for score in scores]
    lengths = [length for item in scored for length in item.lengths]
    return {
        "reward/mean": fmean(rewards),
        "reward/std": pstdev(rewards),
        "reward/correct_frac": fmean(score.correct for score in scores),
        "reward/zero_std_groups": float(sum(not item.has_spread for item in scored)),
        **part_metrics(scores),
        "length/mean": fmean(lengths),
        "length/max": float(max(lengths)),
        "length/tokens": float(sum(lengths)),
        "length/truncated_frac": fmean(cut for item in scored for cut in item.truncated),
    }
