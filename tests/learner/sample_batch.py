"""Samples of very different lengths, and the loss that learner tests take."""

import random

import torch

from bandpo.batching import Sample
from bandpo.loss import (
    BandKL,
    Capped,
    Clip,
    DualClip,
    PolicyLoss,
    ReferenceKL,
    SequenceMeanTokenMean,
    TokenRatio,
)

TEMPERATURE = 0.9
LOSS = PolicyLoss(
    TokenRatio(),
    DualClip(Clip(Capped(BandKL(0.05), 10.0)), c=10.0),
    SequenceMeanTokenMean(),
    ReferenceKL(0.1),
)


def make_samples(count: int = 9, longest: int | None = None) -> list[Sample]:
    """The same samples in every process, up to three of a prompt.

    One of them may be far longer than the others.
    """
    rng = random.Random(0)
    generator = torch.Generator().manual_seed(0)
    samples = []
    for index in range(count):
        if index % 4 in (0, 3):  # else that of the sample before
            prompt = tuple(rng.randrange(5, 250) for _ in range(rng.randint(2, 9)))
        length = longest if longest and index == 3 else rng.randint(1, 24)
        answer = tuple(rng.randrange(5, 250) for _ in range(length))
        # Near the untrained policy's log(1/262), so that some tokens clip and others do not.
        old, ref = -5.57 + 0.3 * torch.randn(2, len(answer), generator=generator)
        sample = Sample(prompt, answer, rng.gauss(0, 1), rollout_logp=old)
        sample.old_logp, sample.ref_logp, sample.entropy = old, ref, torch.zeros_like(old)
        samples.append(sample)
    return samples
