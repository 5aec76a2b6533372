"""Proves, before training, that the learner computes the model as transformers does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from bandpo.batching import Sample
from bandpo.errors import UserError
from bandpo.model.agreement import FEWEST, gap_between, own_text
from bandpo.model.features import likely_settings, training_noise
from bandpo.types import token_array

Logprobs = Callable[[Sequence[Sample]], list[list[float]]]
# Tokens of a probe's prompt; its completion has as many as a mean needs.
_PROMPT = 2
UNLIKELY = 8.0
"""Nats beyond which a log-probability may differ in proportion to its size."""


def prove_network(
    logprobs: Logprobs,
    in_training: Logprobs,
    own: Logprobs,
    probes: Sequence[Sample],
    tolerance: float,
    lm_config: Any,
) -> None:
    """Raises UserError where a sequence alone has other log-probabilities than the model's own.

    It is scored as before an update, as in an update (twice, since noise differs between draws),
    and by transformers itself (`bandpo.model.agreement.own_logprobs`).
    """
    alone, wanted = _each(logprobs, probes), _each(own, probes)
    gap = _mean_gap(wanted, alone)
    # Rounding grows with the logits, and these tokens may be unlikely ones.
    least = max(abs(value) for row in wanted for value in row)
    if not gap <= tolerance * max(1, least / UNLIKELY):
        raise UserError(
            "the learner's log-probabilities of this model are not those that transformers "
            f"computes (they differ by {gap:.3g}): it has a feature that model.attention, "
            f"learner.packing or the learner's head omits. {likely_settings(lm_config)}. "
            "Try model.attention=eager with learner.packing=false, or choose another model"
        )
    gap = max(_mean_gap(_each(in_training, probes), alone) for _ in range(2))
    if not gap <= tolerance:
        noise = ", ".join(training_noise(lm_config)) or "a setting of its own"
        raise UserError(
            "this model gives other log-probabilities in training mode (they differ by "
            f"{gap:.3g}), so importance ratios would be noise: {noise} in config.json cannot "
            "be turned off from here; set it to 0 there"
        )


def prove_packing(logprobs: Logprobs, probes: Sequence[Sample], tolerance: float) -> None:
    """Raises UserError where a sequence's log-probabilities change with its neighbours in a row.

    Models whose layers are not all attention would mix a row's sequences without an error.
    """
    gap = _mean_gap(logprobs(probes), _each(logprobs, probes))
    if not gap <= tolerance:
        raise UserError(
            "learner.packing=true: this model mixes the sequences of a row (log-probabilities "
            f"differ by {gap:.3g}); set learner.packing=false"
        )


def probes_of(lm: Any) -> list[Sample]:
    """Texts of the model itself: two samples of one prompt, and one of another."""
    first, second, other = own_text(lm, 3, _PROMPT + FEWEST)
    second[:_PROMPT] = first[:_PROMPT]
    return [
        Sample(tuple(row[:_PROMPT]), token_array(row[_PROMPT:]), 0.0, torch.zeros(FEWEST))
        for row in (first, second, other)
    ]


def _each(logprobs: Logprobs, probes: Sequence[Sample]) -> list[list[float]]:
    return [values for sample in probes for values in logprobs([sample])]


def _mean_gap(theirs: Sequence[Sequence[float]], ours: Sequence[Sequence[float]]) -> float:
    """Over all probes: a feature that is omitted shows in each, a token's rounding in one."""
    gaps = [gap_between([a], [b]).mean for a, b in zip(theirs, ours, strict=True)]
    return sum(gaps) / len(gaps)
