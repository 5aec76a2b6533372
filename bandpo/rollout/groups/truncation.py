"""Samples that the length limit cut off: kept, masked or penalised (`rollout.truncated`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from bandpo.batching import Place
from bandpo.config.sections.rollout import RolloutConfig
from bandpo.rollout.scoring import GroupSummary, ScoredGroup


@dataclass(frozen=True)
class Truncation:
    """The part that samples cut off by the length limit have in training.

    masked       they are in no minibatch, so that they have no gradient and count neither as
                 tokens nor as sequences of the loss: DAPO's overlong filtering (section 3.4), with
                 the normalisation of verl's `agg_loss`, which excludes sequences without a token
    in_baseline  masked samples count in the mean and deviation of their group's rewards, as they do
                 in TRL (`mask_truncated_completions`) and NeMo-RL
    penalty      subtracted from their rewards, beside the terms of the reward itself: what
                 `bandpo.reward.Overlong` becomes at the limit as its buffer shrinks to nothing
    """

    masked: bool = False
    in_baseline: bool = True
    penalty: float = 0.0

    @classmethod
    def of(cls, settings: RolloutConfig) -> Truncation:
        """The one that a configuration asks for."""
        penalised = settings.truncated == "penalise"
        return cls(
            masked=settings.truncated == "mask",
            in_baseline=settings.truncated_in_baseline,
            penalty=settings.truncated_penalty if penalised else 0.0,
        )

    def penalised(self, item: ScoredGroup) -> ScoredGroup:
        """The group with the penalty as a part of its rewards; verdicts stay as they are."""
        if not self.penalty:
            return item
        scores = [
            score.plus("truncated", -self.penalty if completion.truncated else 0.0)
            for score, completion in zip(item.scores, item.group.completions, strict=True)
        ]
        return replace(item, scores=tuple(scores))

    def learned(self, item: GroupSummary) -> list[bool]:
        """Of each sample, whether it is in the loss."""
        return [not (self.masked and cut) for cut in item.truncated]

    def compared(self, item: GroupSummary) -> GroupSummary:
        """The group with the scores by which a filter judges it: those of its baseline.

        It has none where no sample is in the loss, since nothing would be learned from it.
        """
        learned = self.learned(item)
        if not any(learned):
            return replace(item, scores=())
        if self.in_baseline:
            return item
        kept = [score for score, learns in zip(item.scores, learned, strict=True) if learns]
        return replace(item, scores=tuple(kept))

    def masked_places(self, groups: Sequence[GroupSummary]) -> frozenset[Place]:
        """The samples that are in no minibatch, by their places in these groups."""
        return frozenset(
            (i, j)
            for i, item in enumerate(groups)
            for j, learns in enumerate(self.learned(item))
            if not learns
        )

    def estimator(
        self, estimate: Callable[..., Tensor], groups: Sequence[GroupSummary]
    ) -> Callable[..., Tensor]:
        """A method's `estimate` of advantages [P, G] for the rewards, or their parts, of groups.

        Samples that are not in the baseline are its invalid ones.
        """
        if not groups or not self.masked or self.in_baseline:
            return estimate
        valid = torch.tensor([self.learned(item) for item in groups], dtype=torch.bool)
        return partial(estimate, valid=valid.reshape(len(groups), -1))

    def metrics(self, groups: Sequence[GroupSummary]) -> dict[str, float]:
        """`rollout/masked_…` of the groups that a step trains on; none where nothing is masked."""
        if not self.masked:
            return {}
        cut = [
            length for i in groups for length, c in zip(i.lengths, i.truncated, strict=True) if c
        ]
        return {
            "rollout/masked_samples": float(len(cut)),
            "rollout/masked_tokens": float(sum(cut)),
            "rollout/masked_groups": float(sum(not any(self.learned(item)) for item in groups)),
        }
