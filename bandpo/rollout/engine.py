"""Generation engines: what they are made of, and what training and evaluation ask of them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

from hydra.utils import instantiate
from torch import Tensor

from bandpo.ranks.collectives import Alone, Ranks
from bandpo.types import Completion, Group, Prompt

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineSpec:
    """The policy to serve and the processes that share the work: every engine's first argument.

    An engine's other arguments are the settings of `rollout.engine`.
    """

    model_path: str
    """Folder with the model's configuration, weights and tokenizer."""
    dtype: str = "float32"
    """Of the engine's weights."""
    seed: int = 0
    """Of the run; samples depend on their prompts' seeds alone."""
    trust_remote_code: bool = False
    chat_template: str | None = None
    """Of the prompts, as `data.chat_template` names it; None: the tokenizer's own."""
    max_model_len: int = 2048
    """Tokens of the longest prompt with its completion."""
    samples: int | None = None
    """The most completions asked for at a time, by all processes; None: any number."""
    threads: int = 1
    """CPU threads of this rank."""
    ranks: Ranks = field(default_factory=Alone)
    """The processes that construct an engine together, each with this spec."""
    folder: Path | None = None
    """The results of the evaluation, where an engine may keep records of its own; None: nowhere."""


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn: `n` per prompt, of at most `max_tokens` tokens.

    A completion ends with a token of the model's end-of-sequence ids or of `stop_token_ids`, or
    with the token in which one of the `stop` strings is complete; that token is its last.
    """

    n: int = 32
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 1024
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    min_p: float = 0.0
    """Share of the most probable token's probability below which none is sampled."""
    presence_penalty: float = 0.0
    """Subtracted from the logits of tokens that the completion contains."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit once per occurrence in the completion."""
    repetition_penalty: float = 1.0
    """Divides positive logits of tokens in prompt and completion and multiplies negative ones."""

    def __post_init__(self) -> None:
        """Raises ValueError for an empty stop string, which would end every completion at once."""
        if "" in self.stop:
            raise ValueError("stop: an empty text would end every completion at once")

    def settings(self) -> dict[str, Any]:
        """The parameters as JSON, without those that are unused and younger than saved settings."""
        unused = {part.name: part.default for part in fields(self)[5:]}
        values = {part.name: getattr(self, part.name) for part in fields(self)}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
            if name not in unused or value != unused[name]
        }


class RolloutEngine(Protocol):
    """Generates groups with a policy whose weights can be replaced between calls.

    An engine that derives from it inherits the defaults.
    """

    name: str
    """The engine as it appears in run.json: vllm_local, vllm_server, hf or openai."""
    weight_version: int
    """How many times the weights have been replaced."""

    samples_apart: bool = False
    """Whether it samples in other processes, as `rollout.lag` needs: a thread can wait for it."""

    is_shared: bool = False
    """Whether ranks hold it together: then all must call `generate` and exhaust it."""

    name_only: bool = False
    """Whether its model is known by name alone, as an endpoint's: it evaluates and never trains."""

    @property
    def replicas(self) -> int:
        """Copies of the weights; as many completions, over all ranks, probe each of them."""
        return 1

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[Group]:
        """Yields one group of `sampling.n` completions per prompt, in the order they finish."""
        ...

    def logprobs(self, prompt: Prompt, completions: Sequence[Completion]) -> list[list[float]]:
        """Log-probabilities at temperature 1 of given completion tokens, for the sync probe."""
        ...

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Replaces every weight by the (name, tensor) stream and forgets cached prefixes."""
        ...

    def sleep(self) -> None:
        """Frees device memory for the learner; does nothing by default."""

    def wake(self) -> None:
        """Takes device memory back before weights are loaded; does nothing by default."""

    def notes(self) -> list[str]:
        """Lines for the user at the end of an evaluation; none by default."""
        return []

    def close(self) -> None:
        """Ends the engine and its processes."""
        ...


def start_engine(settings: Mapping[str, Any], spec: EngineSpec) -> RolloutEngine:
    """The engine that `_target_` names, with the further settings; collective over `spec.ranks`.

    Settings that are the spec's have no effect, and a warning names those that differ from it.
    """
    taken = settings.keys() & {part.name for part in fields(spec)}
    ignored = [n for n in sorted(taken) if settings[n] not in (None, getattr(spec, n))]
    if ignored:
        logger.warning("no effect in rollout.engine: %s", ", ".join(ignored))
    own = {name: value for name, value in settings.items() if name not in taken}
    engine: RolloutEngine = instantiate(own, spec)
    return engine
