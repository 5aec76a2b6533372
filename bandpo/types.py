"""The data that packages pass to each other.

Shapes are written with one legend everywhere: P prompts, G samples of a prompt, B sequences,
T tokens, V vocabulary entries.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from bandpo.errors import UserError

# `bandpo.loss` is used beside torch alone, which installs without NumPy.
if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

LOGPROB_ROUNDING = 1e-3  # above 0
FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Turn:
    """A message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class Problem:
    """A question with its reference answer.

    `id` is unique within a dataset and stable across runs: seeds are derived from it.
    `meta` carries columns that only some datasets have (level, subject, url). `turns` are those of
    the conversation before `problem`, which is its last user turn.
    """

    id: str
    problem: str
    answer: str
    source: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)
    turns: tuple[Turn, ...] = ()

    @property
    def conversation(self) -> str:
        """The text of all turns, `problem` the last of them, with a blank line between two."""
        return "\n\n".join([*(turn.content for turn in self.turns), self.problem])


@dataclass(frozen=True)
class Prompt:
    """A problem as the model sees it: chat-formatted text, its tokens and the sampling seed.

    `turns` are the conversation, where an endpoint formats it: then there are no tokens.
    """

    problem: Problem
    text: str
    token_ids: tuple[int, ...]
    seed: int = 0
    turns: tuple[Turn, ...] = ()


def token_array(token_ids: ArrayLike) -> NDArray[np.int32]:
    """Token ids as a contiguous int32 array, without a copy where they are one."""
    import numpy as np

    return np.require(token_ids, np.int32, ["C", "W"])


def logprob_array(logprobs: ArrayLike) -> NDArray[np.float32]:
    """Log-probabilities as a contiguous float32 array, without a copy where they are one."""
    import numpy as np

    return np.require(logprobs, np.float32, ["C", "W"])


@dataclass(frozen=True)
class Completion:
    """One sampled answer with the log-probabilities of its tokens under the sampling policy.

    `logprobs` are those of the distribution actually sampled from (after temperature), so that
    exp(logprob) is the probability with which the engine drew the token. `token_ids` include the
    end-of-sequence token when `finish_reason` is "stop". `weight_version` is that of the engine's
    weights, the number of syncs before. An endpoint that is known by name alone may give neither
    tokens nor log-probabilities: then `reported_tokens` is their number.

    token_ids, logprobs   [T] int32 and float32; any sequence of numbers is taken and converted.
                          NumPy's, as processes exchange, save and view them without copies, and
                          without the 68 bytes that Python takes for a token and its logprob
    """

    text: str
    token_ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    finish_reason: FinishReason
    weight_version: int = 0
    reported_tokens: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "token_ids", token_array(self.token_ids))
        object.__setattr__(self, "logprobs", logprob_array(self.logprobs))

    def __eq__(self, other: object) -> bool:
        """Whether all fields are equal, arrays element by element."""
        import numpy as np

        if not isinstance(other, Completion):
            return NotImplemented
        return (
            self._plain == other._plain
            and np.array_equal(self.token_ids, other.token_ids)
            and np.array_equal(self.logprobs, other.logprobs)
        )

    def __hash__(self) -> int:
        return hash((*self._plain, self.token_ids.tobytes()))

    @property
    def _plain(self) -> tuple[Any, ...]:
        return (self.text, self.finish_reason, self.weight_version, self.reported_tokens)

    @property
    def length(self) -> int:
        """Its number of tokens."""
        return len(self.token_ids) if self.reported_tokens is None else self.reported_tokens

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

    logp          log π(token) under the policy being trained, with gradient
    old_logp      log π_old(token), the policy at the start of the rollout's updates
    advantages    the sample's advantage, repeated over its tokens
    mask          1 for completion tokens, 0 for prompt and padding
    ref_logp      log π_ref(token) of the frozen reference, when a reference KL is on
    rollout_logp  log-probability reported by the sampling engine, for mismatch correction
    entropy       entropy of π_old at the token's position, for adaptive radii; None if unknown
                  (samples of older weights: engines report none)
    new_entropy   entropy of the policy being trained, for metrics where π_old's is unknown; with
                  gradient where the loss takes one through it (an entropy bonus)
    step          the training step, for scheduled radii
    weight        the sample's factor on each token's value, reference KL included; None is 1. The
                  counts by which losses are normalised stay those of the whole batch
    pass_rate     the share of the group's samples that are right; None if unknown
    dual          the dual variable λ of the group's query; None where there is none
    number        the sample's, whole and below 2^24, from its id: for choices at random that are to
                  be the same however the batch is split

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
    weight: Tensor | None = None
    pass_rate: Tensor | None = None
    dual: Tensor | None = None
    number: Tensor | None = None

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

    def neutral(self) -> TokenBatch:
        """The batch in at least float32 with 0 at masked positions, of all tensors.

        Masked values are arbitrary: without this an overflow there would turn into 0·inf = NaN.
        """
        dtype = torch.promote_types(self.logp.dtype, torch.float32)
        kept = self.mask.bool()
        return self._each(lambda tensor: torch.where(kept, tensor.to(dtype), 0.0))

    def to(self, device: torch.device | str) -> TokenBatch:
        """The batch with every tensor on `device`."""
        return self._each(lambda tensor: tensor.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> TokenBatch:
        changed = {
            f.name: change(value)
            for f in dataclasses.fields(self)
            if isinstance(value := getattr(self, f.name), Tensor)
        }
        return dataclasses.replace(self, **changed)


@dataclass(frozen=True)
class BatchTotals:
    """Counts over a whole optimizer batch: every rank, every micro-batch.

    Losses are normalised by these and never by a micro-batch's own counts, which makes loss and
    gradient independent of how the batch was split.
    """

    sequences: float
    tokens: float
