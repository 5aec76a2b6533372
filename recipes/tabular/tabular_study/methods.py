"""The methods that differ in a bandit, and ablations of their bounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from bandpo.loss import (
    Bounds,
    Clip,
    DualClip,
    Interval,
    PolicyLoss,
    SequenceMeanTokenSum,
    TokenBatch,
    TokenRatio,
)
from bandpo.methods.method import Method, single_tokens

# It has no group with a pass rate or a dual variable.
BANDITS_TOKEN = single_tokens(torch.tensor([0.5]), 1.0, 1.0, 1.0, pass_rate=None, dual=None)


@dataclass(frozen=True)
class Below(Bounds):
    """The bounds `rare` for tokens of old probability below `threshold`, `common` for the others.

    An ablation: it tells which tokens an effect of the bounds comes from.
    """

    threshold: float
    rare: Bounds
    common: Bounds

    def for_batch(self, batch: TokenBatch) -> Bounds:
        return Below(self.threshold, self.rare.for_batch(batch), self.common.for_batch(batch))

    def __call__(self, old_logp: torch.Tensor) -> Interval:
        is_rare = old_logp.detach().exp() < self.threshold
        rare, common = self.rare(old_logp), self.common(old_logp)
        return Interval(
            torch.where(is_rare, rare.low, common.low),
            torch.where(is_rare, rare.high, common.high),
        )


def ablations(bounds: Mapping[str, Bounds]) -> list[Method]:
    """Methods that clip to these bounds, with the dual clip that the shipped methods have."""
    return [
        Method(name, PolicyLoss(TokenRatio(), DualClip(Clip(bound)), SequenceMeanTokenSum()))
        for name, bound in bounds.items()
    ]


def applicable(methods: Sequence[Method], group_size: int) -> tuple[list[Method], dict[str, str]]:
    """The methods that differ from each other in a bandit, and why the others are skipped.

    Sequences of one token have no length: every aggregation is a mean over the group. Methods are
    compared by ratio, surrogate and advantages, the latter for every number of successes that a
    group can have.
    """
    kept: list[Method] = []
    left_out: dict[str, str] = {}
    for method in methods:
        twin = next((other for other in kept if _same(method, other, group_size)), None)
        if not isinstance(method.loss.ratio, TokenRatio):
            left_out[method.name] = (
                "its bounds are made for the mean ratio of a long sequence; a single token passes "
                "them at the first inner update"
            )
        elif method.depends_on_batch:
            left_out[method.name] = "it depends on a batch of many prompts, a bandit has one"
        elif reason := method.missing_inputs(BANDITS_TOKEN):
            left_out[method.name] = f"a bandit's tokens lack what it reads: {reason}"
        elif twin:
            left_out[method.name] = f"in a bandit it is {twin.name}"
        else:
            kept.append(method)
    return kept, left_out


def _same(a: Method, b: Method, group_size: int) -> bool:
    rewards = torch.ones(group_size + 1, group_size).tril(-1)
    return a.loss == b.loss and torch.equal(a.advantage(rewards), b.advantage(rewards))
