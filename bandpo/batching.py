"""Groups become samples, samples become minibatches and padded micro-batches."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bandpo.types import BatchTotals, Group, TokenBatch


@dataclass(eq=False)
class Sample:
    """One completion with its prompt and what the loss needs; per-token tensors are [T] on the CPU.

    `id` names it in messages: the problem's id and the completion's place in its group.
    `old_logp`, `entropy` and `ref_logp` are filled in by the learner; a sample without `old_logp`
    is on policy: the learner's own forward pass gives it. One whose `weight_version` is not the
    learner's has the engine's log-probabilities as `old_logp`.
    """

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    advantage: float
    rollout_logp: Tensor | None
    old_logp: Tensor | None = None
    entropy: Tensor | None = None
    ref_logp: Tensor | None = None
    weight_version: int = 0
    id: str = ""

    def take_behaviour_policy(self) -> None:
        """Makes the policy that sampled it, at the weights it was sampled with, the old policy."""
        self.old_logp, self.rollout_logp = self.rollout_logp, None

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


def samples_of(group: Group, advantages: Sequence[float]) -> list[Sample]:
    """The completions of a group with their advantages, in order."""
    return [
        Sample(
            prompt_ids=group.prompt.token_ids,
            completion_ids=completion.token_ids,
            advantage=float(advantage),
            rollout_logp=torch.tensor(completion.logprobs, dtype=torch.float32),
            weight_version=completion.weight_version,
            id=f"{group.problem.id}/{index}",
        )
        for index, (completion, advantage) in enumerate(
            zip(group.completions, advantages, strict=True)
        )
    ]


def totals_of(samples: Sequence[Sample]) -> BatchTotals:
    """The counts that a loss over exactly these samples is normalised by."""
    return BatchTotals(
        sequences=float(len(samples)),
        tokens=float(sum(len(sample.completion_ids) for sample in samples)),
    )


def minibatches(groups: Sequence[Sequence[Sample]], count: int, seed: str) -> list[list[Sample]]:
    """`count` minibatches of whole groups, in an order drawn from the seed.

    Their group counts differ by at most one, so that ranks with as many groups stay in step.
    """
    order = list(range(len(groups)))
    random.Random(seed).shuffle(order)
    return [
        [sample for index in order[start::count] for sample in groups[index]]
        for start in range(count)
    ]


def micro_batches(samples: Sequence[Sample], token_budget: int) -> list[list[Sample]]:
    """Samples of similar length together, at most `token_budget` padded tokens each.

    A sample longer than the budget gets a micro-batch of its own.
    """
    batches: list[list[Sample]] = []
    longest = 0
    for sample in sorted(samples, key=len, reverse=True):
        if not batches or (len(batches[-1]) + 1) * longest > token_budget:
            batches.append([])
            longest = len(sample)
        batches[-1].append(sample)
    return batches


@dataclass(frozen=True)
class PaddedBatch:
    """Samples as the network takes them.

    input_ids, attention_mask   [B, L]: prompt and completion, padded on the right
    positions, targets, mask    [B, T]: where the hidden state that predicts each completion token
                                stands, the token, and 1 where there is one
    """

    samples: tuple[Sample, ...]
    input_ids: Tensor
    attention_mask: Tensor
    positions: Tensor
    targets: Tensor
    mask: Tensor

    @classmethod
    def of(
        cls, samples: Sequence[Sample], device: torch.device | str = "cpu", weightless: bool = False
    ) -> PaddedBatch:
        """Pads samples; a weightless batch has mask 0 and only keeps ranks in step."""
        width = max(len(s) for s in samples)
        length = max(len(s.completion_ids) for s in samples)
        # What padding holds is never attended to nor scored, so any valid token will do.
        ids = torch.zeros(len(samples), width, dtype=torch.long)
        attention = torch.zeros(len(samples), width, dtype=torch.long)
        mask = torch.zeros(len(samples), length)
        targets = torch.zeros(len(samples), length, dtype=torch.long)
        starts = torch.tensor([len(s.prompt_ids) for s in samples])
        for row, sample in enumerate(samples):
            ids[row, : len(sample)] = torch.tensor(sample.prompt_ids + sample.completion_ids)
            attention[row, : len(sample)] = 1
            targets[row, : len(sample.completion_ids)] = torch.tensor(sample.completion_ids)
            mask[row, : len(sample.completion_ids)] = 0.0 if weightless else 1.0
        positions = (starts[:, None] - 1 + torch.arange(length)).clamp(max=width - 1)
        tensors = (t.to(device) for t in (ids, attention, positions, targets, mask))
        return cls(tuple(samples), *tensors)

    def padded(self, field: str) -> Tensor:
        """A per-token field of the samples as [B, T], 0 where there is no token."""
        out = torch.zeros(self.mask.shape)
        for row, sample in enumerate(self.samples):
            values = getattr(sample, field)
            out[row, : len(values)] = values
        return out.to(self.mask.device)

    def has(self, field: str) -> bool:
        """Whether every sample carries the field."""
        return all(getattr(sample, field) is not None for sample in self.samples)

    def token_batch(self, logp: Tensor, entropy: Tensor | None, step: int) -> TokenBatch:
        """What the loss sees; on-policy samples take their old log-probabilities from `logp`."""
        advantages = torch.tensor([s.advantage for s in self.samples], device=logp.device)
        return TokenBatch(
            logp=logp,
            old_logp=self.padded("old_logp") if self.has("old_logp") else logp.detach(),
            advantages=advantages[:, None].expand_as(self.mask),
            mask=self.mask,
            ref_logp=self.padded("ref_logp") if self.has("ref_logp") else None,
            rollout_logp=self.padded("rollout_logp") if self.has("rollout_logp") else None,
            entropy=self.padded("entropy") if self.has("entropy") else entropy,
            step=step,
        )
