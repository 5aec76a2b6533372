"""The statistics that parts of a loss ask for, over the micro-batches of all ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from bandpo.batching import Sample
from bandpo.learner.layouts import Batch, micro_batches
from bandpo.learner.memory import MicroBatches
from bandpo.loss import PolicyLoss
from bandpo.loss.statistic import asking_parts, is_of_ratios, merged, with_statistics
from bandpo.ranks.collectives import Ranks
from bandpo.types import TokenBatch

Pass = Callable[[Sequence[Sample]], Iterable[tuple[Batch, Tensor, Tensor]]]
"""Log-probabilities and entropies [B, T] of samples under the weights as they are; collective."""


class PrePass:
    """Gives a loss the statistics of an optimizer batch before the passes of its update.

    `scored` are the samples whose `old_logp` is that of the weights as they are.
    """

    def __init__(self, micro_batches: MicroBatches, layout: type[Batch], ranks: Ranks) -> None:
        self._micro_batches, self._layout, self._ranks = micro_batches, layout, ranks
        self.scored: set[Sample] = set()

    def informed(
        self, loss: PolicyLoss, samples: Sequence[Sample], step: int, forward: Pass
    ) -> PolicyLoss:
        """The loss with what its parts ask of the samples of all ranks; collective.

        `forward` is called where a part asks, on the samples whose log-probabilities are unknown.
        """
        parts = asking_parts(loss)
        if not parts:
            return loss
        batches = self._batches(samples, step, forward, all(map(is_of_ratios, parts)))
        mine = [[p.statistic(batch) for p in parts] for batch in map(TokenBatch.neutral, batches)]
        everywhere = self._ranks.gather(merged(mine) if mine else None)
        return with_statistics(loss, merged([found for found in everywhere if found is not None]))

    def _batches(
        self, samples: Sequence[Sample], step: int, forward: Pass, of_ratios: bool
    ) -> Iterator[TokenBatch]:
        """The samples under the weights as they are.

        `of_ratios`: samples on policy are wanted for their ratio alone, which is 1.
        """
        on_policy = [sample for sample in samples if of_ratios and sample.old_logp is None]
        scored = [sample for sample in samples if sample in self.scored]
        for known in (on_policy, scored):
            for members in micro_batches(known, self._micro_batches.tokens, self._layout):
                batch = self._layout.of(members, self._ranks.device)
                logp = batch.values.get("old_logp", torch.zeros_like(batch.mask))
                yield batch.token_batch(logp, batch.values.get("entropy"), step)
        done = {*on_policy, *scored}
        for batch, logp, entropy in forward([sample for sample in samples if sample not in done]):
            yield batch.token_batch(logp, entropy, step)
