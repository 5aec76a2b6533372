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
from bandpo.learner.layouts import Batch, micro_batches, split_to
from bandpo.ranks.collectives import Ranks
from bandpo.types import token_array

logger = logging.getLogger(__name__)

PLACEHOLDER = Sample((0,), token_array((0,)), 0.0, *torch.zeros(4, 1))
"""Keeps a rank without samples in step with the others' collectives; its mask is 0."""


class OutOfMemory(Exception):
    """A micro-batch did not fit on some rank; raised on all of them."""


class MicroBatch(NamedTuple):
    """Samples of one pass; a weightless one only keeps this rank in step with the others."""

    samples: list[Sample]
    weightless: bool = False


class MicroBatches:
    """Cuts samples into micro-batches of at most `tokens` tokens, as `layout` counts them.

    Every method is collective over the ranks. A pass runs inside `forward` or `backward`, which
    raise OutOfMemory on all ranks where it did not fit on one. The caller then discards what it has
    accumulated, calls `halve` and starts again.
    """

    def __init__(self, tokens: int, layout: type[Batch], ranks: Ranks, zero_stage: int) -> None:
        self.tokens = tokens
        self._layout, self._ranks, self._zero_stage = layout, ranks, zero_stage

    def of(self, samples: Sequence[Sample]) -> list[MicroBatch]:
        """The samples' micro-batches, padded with weightless ones to the same number on every rank.

        ZeRO 2 and 3 communicate in every pass: a rank with fewer would leave the others waiting.
        """
        mine = micro_batches(samples, self.tokens, self._layout)
        most = int(self._ranks.max(torch.tensor(len(mine), device=self._ranks.device)))
        mine = split_to(mine, most)
        spare = samples[:1] or [PLACEHOLDER]
        filler = [MicroBatch([spare[0]], weightless=True)] * (most - len(mine))
        return [MicroBatch(batch) for batch in mine] + filler

    def forward(self) -> AbstractContextManager[None]:
        """Surrounds a forward pass, in which ZeRO 3 gathers the layers' weights."""
        return self._agreed(local=self._ranks.size == 1 or self._zero_stage < 3)

    def backward(self, last: bool) -> AbstractContextManager[None]:
        """Surrounds a backward pass: ZeRO reduces during each, stage 0 at the end of the last."""
        return self._agreed(local=self._zero_stage == 0 and (self._ranks.size == 1 or not last))

    @contextmanager
    def _agreed(self, local: bool) -> Iterator[None]:
        """Raises OutOfMemory on all ranks where the pass inside does not fit on one of them.

        A pass that communicates is not `local`: other ranks cannot be called back from it.
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
        if local and self._ranks.any(failed):
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
