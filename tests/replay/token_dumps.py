"""Loss outputs as a learner shows them to its observers, and files of them."""

from collections.abc import Sequence
from pathlib import Path

import torch

from bandpo.loss import Clip, Fixed, LossOutput, PolicyLoss, TokenMean, TokenRatio
from bandpo.methods.records import TokenRecorder
from bandpo.types import BatchTotals, TokenBatch

LOSS = PolicyLoss(TokenRatio(), Clip(Fixed(0.2, 0.2)), TokenMean())


def random_batch(seed: int, sequences: int = 30, tokens: int = 25, step: int = 10) -> TokenBatch:
    """Sequences of many lengths, one of them empty; ratios on both sides of every bound."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    old_logp = -12 * uniform(sequences, tokens) ** 3 - 1e-4
    noise = torch.randn(sequences, tokens, generator=generator)
    lengths = (uniform(sequences, 1) * tokens).ceil()
    lengths[sequences // 2] = 0
    advantages = (uniform(sequences, 1) * 4 - 2).round(decimals=1)
    advantages[sequences // 3] = 0
    return TokenBatch(
        logp=(old_logp + 1.5 * noise * uniform(sequences, 1)).clamp(max=-1e-5),
        old_logp=old_logp,
        advantages=advantages.expand(sequences, tokens),
        mask=(torch.arange(tokens) < lengths).float(),
        entropy=3 * uniform(sequences, tokens),
        step=step,
    )


def output_of(batch: TokenBatch) -> LossOutput:
    """The batch as the loss of a run hands it on."""
    return LOSS(batch, BatchTotals(1.0, 1.0))


def write_dump(path: Path, batches: Sequence[TokenBatch]) -> Path:
    """A file with a batch an update."""
    with TokenRecorder(path) as recorder:
        for update, batch in enumerate(batches):
            recorder.update = update
            recorder(output_of(batch))
    return path


def sequences_of(batches: Sequence[TokenBatch]) -> list[dict[str, list[float]]]:
    """The unmasked values of every sequence that has a token, in order."""
    found = []
    for batch in batches:
        for row in range(len(batch.mask)):
            kept = batch.mask[row].bool()
            if kept.any():
                names = ("advantages", "old_logp", "logp", "entropy")
                found.append({name: getattr(batch, name)[row][kept].tolist() for name in names})
    return found
