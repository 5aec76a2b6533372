"""The fields of a request: sampling settings as OpenAI names them, and what a user adds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from bandpo.errors import UserError
from bandpo.rollout.engine import Sampling
from bandpo.types import Prompt

Api = Literal["chat", "completions"]
PATHS: Mapping[str, str] = {"chat": "/chat/completions", "completions": "/completions"}

_ALWAYS = ("temperature", "top_p")
_WHERE_SET = ("stop", "presence_penalty", "frequency_penalty")
_LIMITS = ("max_tokens", "max_completion_tokens")
OMITTABLE = (*_ALWAYS, "seed")
# Set by the engine itself, or by the settings of an evaluation.
_TAKEN = {"model", "messages", "prompt", "n", "seed", "stream", *_LIMITS, *_ALWAYS, *_WHERE_SET}
# Keys of `eval` that have another name than the sampling parameter.
_KEYS = {"stop_token_ids": "stop"}
SEED_BITS = 63


@dataclass(frozen=True)
class Fields:
    """How requests are written.

    Only standard fields are sent, except those of `extra_body`; `omit` leaves standard ones out.
    """

    model: str
    api: Api = "chat"
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    omit: tuple[str, ...] = ()
    limit_field: str = "max_tokens"
    seed_bits: int = SEED_BITS

    def __post_init__(self) -> None:
        """Raises UserError for a value that is none of those allowed."""
        if self.api not in PATHS:
            raise UserError(f"rollout.engine.api={self.api} is neither chat nor completions")
        if self.limit_field not in _LIMITS:
            raise UserError(
                f"rollout.engine.limit_field={self.limit_field} is none of {', '.join(_LIMITS)}"
            )
        if unknown := sorted(set(self.omit) - set(OMITTABLE)):
            raise UserError(f"rollout.engine.omit: {unknown[0]} is none of {', '.join(OMITTABLE)}")
        if not 1 <= self.seed_bits <= SEED_BITS:
            raise UserError(f"rollout.engine.seed_bits={self.seed_bits} is not in 1 … {SEED_BITS}")
        if taken := sorted(self.extra_body.keys() & _TAKEN):
            raise UserError(
                f"rollout.engine.extra_body: {taken[0]} is a standard field, which eval.… and "
                "rollout.engine.… set (rollout.engine.omit leaves one out)"
            )

    @classmethod
    def of(cls, name: str, settings: Mapping[str, Any]) -> Fields:
        """Those of an engine's settings; `name` is the model's where they name none."""
        names = [part.name for part in dataclasses.fields(cls) if part.name != "model"]
        given = {key: settings[key] for key in names if settings.get(key) is not None}
        if "omit" in given:
            given["omit"] = tuple(given["omit"])
        return cls(settings.get("model") or name, **given)

    @property
    def path(self) -> str:
        """The path of requests below the endpoint's URL."""
        return PATHS[self.api]

    def settings(self) -> dict[str, Any]:
        """The settings that samples depend on, besides the sampling itself, as JSON."""
        values = dataclasses.asdict(self)
        names = [part.name for part in dataclasses.fields(self)]
        return {name: values[name] for name in names if name != "model" and values[name]}

    def of_sampling(self, sampling: Sampling) -> dict[str, Any]:
        """The fields of all requests; raises UserError for settings that the standard lacks."""
        unused = {part.name: part.default for part in dataclasses.fields(sampling)}
        values = {name: getattr(sampling, name) for name in unused}
        self._refuse_contradictions(values, unused)
        sent = {name: values[name] for name in _ALWAYS if name not in self.omit}
        for name in _WHERE_SET:
            if name in values and values[name] != unused[name]:
                sent[name] = list(values[name]) if name == "stop" else values[name]
        return {
            "model": self.model,
            self.limit_field: sampling.max_tokens,
            **sent,
            **self.extra_body,
        }

    def _refuse_contradictions(self, values: Mapping[str, Any], unused: Mapping[str, Any]) -> None:
        """Raises UserError for a setting that would not be sent, or would be sent otherwise."""
        for name, value in values.items():
            if name in ("n", "max_tokens", *_WHERE_SET) or value == unused[name]:
                continue
            if name in self.omit:
                raise UserError(
                    f"rollout.engine.omit has {name}, so that eval.{name}={value} would have no "
                    "effect: remove one of them"
                )
            if name not in _ALWAYS and _plain(self.extra_body.get(name)) != _plain(value):
                key, value = _KEYS.get(name, name), _plain(value)
                raise UserError(
                    f"eval.{key}={value}: OpenAI's interface has no {name}; where the endpoint "
                    f"takes it, send it besides: 'rollout.engine.extra_body={{{name}: {value}}}'"
                )

    def of_prompt(self, prompt: Prompt) -> dict[str, Any]:
        """The conversation, or for `completions` the prompt's tokens, or its text without any."""
        if self.api == "completions":
            return {"prompt": list(prompt.token_ids) or prompt.text}
        turns = [{"role": turn.role, "content": turn.content} for turn in prompt.turns]
        return {"messages": turns or [{"role": "user", "content": prompt.text}]}

    def of_samples(self, seed: int, first: int, count: int) -> dict[str, Any]:
        """The number of samples and the seed of the first; the others have the seeds after it.

        As vLLM derives the seeds of a prompt's samples, so that one request for all of them and one
        for each give the same.
        """
        number = {"n": count} if count > 1 else {}
        own = {} if "seed" in self.omit else {"seed": (seed + first) % 2**self.seed_bits}
        return number | own


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
