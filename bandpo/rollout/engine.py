"""What the training loop and the evaluation ask of a generation engine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from bandpo.types import Completion, Group, Prompt


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn.

    `n` samples a prompt; `top_p = 1` and `top_k = 0` sample the full distribution, which
    importance ratios need; `max_tokens` bounds the completion.
    """

    n: int = 32
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 1024


class RolloutEngine(Protocol):
    """Generates groups with a policy whose weights can be replaced between calls."""

    name: str
    """The engine as it appears in run.json: vllm_local, vllm_server or hf."""
    weight_version: int
    """How many times the weights have been replaced."""

    samples_apart: bool
    """Whether it samples in other processes, so that a thread can wait for it (rollout.lag)."""

    is_shared: bool
    """Whether other ranks hold parts of it: all of them generate to the end together."""

    @property
    def replicas(self) -> int:
        """Copies of the weights; as many completions, over all ranks, probe every one."""
        ...

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[Group]:
        """Yields one group of `sampling.n` completions a prompt, in the order they finish."""
        ...

    def logprobs(self, prompt: Prompt, completions: Sequence[Completion]) -> list[list[float]]:
        """Log-probabilities at temperature 1 of given completion tokens, for the sync probe."""
        ...

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Replaces every weight by the (name, tensor) stream and forgets cached prefixes."""
        ...

    def sleep(self) -> None:
        """Frees device memory for the learner, where the engine can."""
        ...

    def wake(self) -> None:
        """Takes device memory back before weights are loaded."""
        ...

    def close(self) -> None:
        """Ends the engine and its processes."""
        ...
