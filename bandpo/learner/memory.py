"""Micro-batches that fit into memory: cut to a budget of tokens, which halves where one does not.

accelerate's `find_executable_batch_size` halves on one process; here all ranks must do it together.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

import torch

from bandpo.batching import Sample
from bandpo.errors import RunHalted
from bandpo.learner.ahead import one_ahead
from bandpo.learner.layouts import Batch, micro_batches, split_to
from bandpo.ranks.collectives import Ranks
from bandpo.types import token_array

logger = logging.getLogger(__name__)

_ZERO = torch.zeros(1)
PLACEHOLDER = Sample(
    (0,), token_array((0,)), 0.0, _ZERO, _ZERO, _ZERO, _ZERO, pass_rate=0.0, dual=1.0
)
"""Keeps a rank without samples in step with the others' collectives; its mask is 0."""


class OutOfMemory(Exception):
    """A micro-batch did not fit on some rank; raised on all of them."""


class MicroBatch(NamedTuple):
    """Samples of one pass; a weightless one only keeps this rank in step with the others."""

    samples: list[Sample]
    weightless: bool = False


class MicroBatches:
    """Cuts samples into micro-batches of at most `tokens` tokens, as `layout` counts them.

    Every method is collective over the ranks. A pass runs inside `scoring`, `forward` or
    `backward`. Where one does not fit, OutOfMemory is raised on all ranks: on that one at once, on
    the others before they communicate next. The caller then discards what it has accumulated, calls
    `halve` and starts again.
    """

    def __init__(self, tokens: int, layout: type[Batch], ranks: Ranks, zero_stage: int) -> None:
        self.tokens = tokens
        self._layout, self._ranks, self._zero_stage = layout, ranks, zero_stage
        # Whether memory was there is known when a pass is queued: ranks agree through the hosts,
        # and no GPU has to finish first what it has been given.
        on_gpu = torch.device(ranks.device).type == "cuda"
        self._hosts = ranks.apart() if on_gpu and ranks.size > 1 else ranks

    def of(self, samples: Sequence[Sample], least: int = 0) -> list[MicroBatch]:
        """The samples' micro-batches, padded with weightless ones to the same number on every rank.

        ZeRO 2 and 3 communicate in every pass: a rank with fewer would leave the others waiting.
        There are at least `least` of them.
        """
        mine = micro_batches(samples, self.tokens, self._layout)
        most = int(self._ranks.max(torch.tensor(len(mine), device=self._ranks.device)))
        mine = split_to(mine, most)
        spare = samples[:1] or [PLACEHOLDER]
        filler = [MicroBatch([spare[0]], weightless=True)] * (max(most, least) - len(mine))
        return [MicroBatch(batch) for batch in mine] + filler

    def laid_out(self, batches: Sequence[MicroBatch]) -> Iterator[Batch]:
        """The micro-batches as the network takes them, still on the host.

        The next one is laid out while the caller is busy with the last.
        """
        on_gpu = torch.device(self._ranks.device).type == "cuda"

        def lay(batch: MicroBatch) -> Batch:
            laid = self._layout.of(batch.samples, weightless=batch.weightless)
            return laid.pinned() if on_gpu else laid

        return one_ahead(lay, batches)

    def scoring(self, index: int, count: int) -> AbstractContextManager[None]:
        """Surrounds a forward pass that no backward pass follows, the `index`-th of `count`.

        The ranks meet after the first, which has the longest prompts or sequences, and the last.
        """
        return self._fitting(local=self._forward_is_local, meet=index in (0, count - 1))

    def forward(self, last: bool) -> AbstractContextManager[None]:
        """Surrounds a forward pass of an update, in which ZeRO 3 gathers the layers' weights."""
        communicates = self._zero_stage > 0 or last  # the backward pass that follows
        return self._fitting(local=self._forward_is_local, meet=communicates)

    def backward(self, last: bool) -> AbstractContextManager[None]:
        """Surrounds a backward pass: ZeRO reduces during each, stage 0 at the end of the last."""
        alone = self._zero_stage == 0 and (self._ranks.size == 1 or not last)
        return self._fitting(local=alone, meet=False)

    @property
    def _forward_is_local(self) -> bool:
        return self._ranks.size == 1 or self._zero_stage < 3

    @contextmanager
    def _fitting(self, local: bool, meet: bool) -> Iterator[None]:
        """Raises OutOfMemory where the pass inside does not fit, or at a meeting has not elsewhere.

        A rank that fails goes to the meeting at once, the others after the last pass before they
        communicate: all come to each one exactly once. A pass that communicates is not `local`:
        other ranks cannot be called back from it.
        """
        failed = False
        try:
            yield
        except torch.OutOfMemoryError as error:
            if not local:
                error.add_note(
                    f"Micro-batches of {self.tokens} tokens do not fit, and with ZeRO stage "
                    f"{self._zero_stage} on {self._ranks.size} rank(s) they cannot be halved at "
                    f"this point. Start again with learner.micro_batch_tokens={self.tokens // 2}: "
                    "the run resumes from its checkpoint with the same result."
                )
                raise
            failed = True
        if local and (failed or meet) and self._hosts.any(failed):
            raise OutOfMemory

    def halve(self, samples: Sequence[Sample]) -> None:
        """Lowers the budget to half of the largest micro-batch of these samples on any rank.

        Raises RunHalted where the largest is already a single sample.
        """
        batches = micro_batches(samples, self.tokens, self._layout)
        longest = max(map(len, samples), default=0)
        largest = max((self._layout.size(batch) for batch in batches), default=0)
        sizes = torch.tensor([longest, largest], device=self._ranks.device)
        longest, largest = self._ranks.max(sizes).tolist()
        if largest <= longest:
            raise RunHalted(
                f"a single sample of {longest} tokens does not fit into memory: lower "
                "rollout.max_tokens or learner.logits_chunk, or set "
                "model.gradient_checkpointing=true, learner.zero_stage=3 or learner.offload"
            )
        self.tokens = largest // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        logger.warning(
            "out of memory in a micro-batch of %d tokens: from here on they hold at most %d "
            "(learner.micro_batch_tokens)",
            largest,
            self.tokens,
        )

    def padding_frac(self, batches: Sequence[MicroBatch]) -> float:
        """The share of the tokens computed, over all ranks, that belong to no sample."""
        computed = sum(self._layout.size(batch.samples) for batch in batches)
        # Prompts that are shared make a row shorter than its sequences.
        real = sum(
            min(self._layout.size(batch.samples), sum(map(len, batch.samples)))
            for batch in batches
            if not batch.weightless
        )
        counts = torch.tensor([real, computed], dtype=torch.float64, device=self._ranks.device)
        real, computed = self._ranks.sum(counts).tolist()
        return 1 - real / computed
