"""The data that packages pass to each other.

Shapes are written with one legend everywhere: P prompts, G samples of a prompt, B sequences,
T tokens, V vocabulary entries.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from bandpo.errors import UserError

LOGPROB_ROUNDING = 1e-3  # above 0
FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Problem:
    """A question with its reference answer.

    `id` is unique within a dataset and stable across runs: seeds are derived from it.
    `meta` carries columns that only some datasets have (level, subject, url).
    """

    id: str
    problem: str
    answer: str
    source: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Prompt:
    """A problem as the model sees it: chat-formatted text, its tokens and the sampling seed."""

    problem: Problem
    text: str
    token_ids: tuple[int, ...]
    seed: int = 0


@dataclass(frozen=True)
class Completion:
    """One sampled answer with the log-probabilities of its tokens under the sampling policy.

    `logprobs` are those of the distribution actually sampled from (after temperature), so that
    exp(logprob) is the probability with which the engine drew the token. `token_ids` include the
    end-of-sequence token when `finish_reason` is "stop". `weight_version` is that of the engine's
    weights, the number of syncs before.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    weight_version: int = 0

    @property
    def truncated(self) -> bool:
        """Whether the length limit cut the completion off."""
        return self.finish_reason == "length"


@dataclass(frozen=True)
class Group:
    """All samples of one prompt: the unit of GRPO's baseline."""

    prompt: Prompt
    completions: tuple[Completion, ...]

    @property
    def problem(self) -> Problem:
        """The problem that the group answers."""
        return self.prompt.problem

    def length(self, index: int) -> int:
        """Tokens of the prompt and of one completion together."""
        return len(self.prompt.token_ids) + len(self.completions[index].token_ids)


def check_logprobs(name: str, values: Tensor) -> None:
    """Raises UserError, which names the tensor, where values are NaN or above 0.

    Rounding in a log-softmax may leave them above 0 by a hair, which is allowed.
    """
    wrong = values.detach().isnan() | (values.detach() > LOGPROB_ROUNDING)
    if wrong.any():
        raise UserError(
            f"{name}: {int(wrong.sum())} of {values.numel()} values are no log-probabilities, the "
            f"first {values.detach()[wrong][0].item():g}: they must be at most 0 and not NaN "
            "(probabilities need log, logits log_softmax)"
        )


@dataclass(frozen=True)
class TokenBatch:
    """The input of a policy loss: values of each token of B sequences, padded to [B, T].

    logp          log π(token) under the policy being trained (the only tensor with gradient)
    old_logp      log π_old(token), the policy at the start of the rollout's updates
    advantages    the sample's advantage, repeated over its tokens
    mask          1 for completion tokens, 0 for prompt and padding
    ref_logp      log π_ref(token) of the frozen reference, when a reference KL is on
    rollout_logp  log-probability reported by the sampling engine, for mismatch correction
    entropy       entropy of π_old at the token's position, for adaptive radii; None if unknown
                  (samples of older weights: engines report none)
    new_entropy   entropy of the policy being trained, for metrics where π_old's is unknown
    step          the training step, for scheduled radii

    Values at masked positions are arbitrary but finite. Units: nats.
    """

    logp: Tensor
    old_logp: Tensor
    advantages: Tensor
    mask: Tensor
    ref_logp: Tensor | None = None
    rollout_logp: Tensor | None = None
    entropy: Tensor | None = None
    new_entropy: Tensor | None = None
    step: int = 0

    def __post_init__(self) -> None:
        shape = self.old_logp.shape
        for name, tensor in vars(self).items():
            if isinstance(tensor, Tensor) and tensor.shape != shape:
                raise ValueError(
                    f"TokenBatch.{name} has shape {tuple(tensor.shape)}, old_logp {tuple(shape)}"
                )

    def check(self) -> None:
        """Raises UserError for log-probabilities of completion tokens that are NaN or above 0."""
        kept = self.mask.bool()
        for name in ("logp", "old_logp", "ref_logp", "rollout_logp"):
            if (values := getattr(self, name)) is not None:
                check_logprobs(f"TokenBatch.{name}", values[kept])

    def to(self, device: torch.device | str) -> TokenBatch:
        """The batch with every tensor on `device`."""
        moved = {
            f.name: value.to(device)
            for f in dataclasses.fields(self)
            if isinstance(value := getattr(self, f.name), Tensor)
        }
        return dataclasses.replace(self, **moved)


@dataclass(frozen=True)
class BatchTotals:
    """Counts over a whole optimizer batch: every rank, every micro-batch.

    Losses are normalised by these and never by a micro-batch's own counts, which makes loss and
    gradient independent of how the batch was split.
    """

    sequences: float
    tokens: float
