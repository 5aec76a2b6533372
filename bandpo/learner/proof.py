"""Proves, before training, that the learner computes the model as transformers does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from bandpo.batching import Sample
from bandpo.errors import UserError
from bandpo.model.agreement import FEWEST, gap_between
from bandpo.model.features import likely_settings, training_noise
from bandpo.types import token_array

Logprobs = Callable[[Sequence[Sample]], list[list[float]]]
# First tokens of prompt and completion: two samples of one prompt, and one of another.
_BEGINNINGS = ((2, 7), (2, 9), (12, 7))
# Tokens of a completion: as many as a mean needs.
_LENGTH = FEWEST
UNLIKELY = 8.0
"""Nats beyond which a log-probability may differ in proportion to its size."""


def prove_network(
    logprobs: Logprobs, in_training: Logprobs, own: Logprobs, tolerance: float, lm_config: Any
) -> None:
    """Raises UserError where a sequence alone has other log-probabilities than the model's own.

    It is scored as before an update, as in an update (twice, since noise differs between draws),
    and by transformers itself (`bandpo.model.agreement.own_logprobs`).
    """
    vocabulary = lm_config.get_text_config().vocab_size
    for sample in _probes(vocabulary):
        alone, wanted = logprobs([sample]), own([sample])
        gap = gap_between(wanted, alone).mean
        # Rounding grows with the logits, and these tokens may be unlikely ones.
        if not gap <= tolerance * max(1, max(map(abs, wanted[0])) / UNLIKELY):
            raise UserError(
                "the learner's log-probabilities of this model are not those that transformers "
                f"computes (they differ by {gap:.3g}): it has a feature that model.attention, "
                f"learner.packing or the learner's head omits. {likely_settings(lm_config)}. "
                "Try model.attention=eager with learner.packing=false, or choose another model"
            )
        gap = max(gap_between(in_training([sample]), alone).mean for _ in range(2))
        if not gap <= tolerance:
            noise = ", ".join(training_noise(lm_config)) or "a setting of its own"
            raise UserError(
                "this model gives other log-probabilities in training mode (they differ by "
                f"{gap:.3g}), so importance ratios would be noise: {noise} in config.json cannot "
                "be turned off from here; set it to 0 there"
            )


def prove_packing(logprobs: Logprobs, tolerance: float, vocabulary: int = 13) -> None:
    """Raises UserError where a sequence's log-probabilities change with its neighbours in a row.

    Models whose layers are not all attention would mix a row's sequences without an error.
    """
    samples = _probes(vocabulary)
    alone = [values for sample in samples for values in logprobs([sample])]
    gap = gap_between(logprobs(samples), alone).mean
    if not gap <= tolerance:
        raise UserError(
            "learner.packing=true: this model mixes the sequences of a row (log-probabilities "
            f"differ by {gap:.3g}); set learner.packing=false"
        )


def _probes(vocabulary: int) -> list[Sample]:
    return [
        Sample(
            (a % vocabulary, (a + 1) % vocabulary),
            token_array([token % vocabulary for token in (b, *range(8, 7 + _LENGTH))]),
            0.0,
            torch.zeros(_LENGTH),
        )
        for a, b in _BEGINNINGS
    ]
