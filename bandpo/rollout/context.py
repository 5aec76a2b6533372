"""The context length of a model, and whether prompts and completions fit it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bandpo.errors import UserError
from bandpo.types import Prompt

# Its names in the configurations of models; the smallest value holds.
_NAMES = (
    *("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "seq_len"),
    *("max_sequence_length", "max_seq_length", "max_target_positions"),
)
# With these, max_position_embeddings already counts the stretched positions.
_STRETCHED = ("su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling")


def context_length(model_config: Any) -> int | None:
    """Tokens of the longest sequence that a transformers model takes; None without a limit.

    As vLLM derives it: the smallest of the config's limits, times the factor of a linear or dynamic
    scaling of rotary positions.
    """
    config = model_config.get_text_config()
    if own := getattr(config, "model_max_length", None):
        return int(own)
    limits = [limit for name in _NAMES if (limit := getattr(config, name, None))]
    if not limits:
        return None
    return int(min(limits) * _rope_factor(config))


def _rope_factor(config: Any) -> float:
    if "gemma3" in config.model_type:
        return 1.0
    rope = getattr(config, "rope_parameters", None) or {}
    layers = [part for part in rope.values() if isinstance(part, dict)] or [rope]
    factors = [
        part.get("factor") or 1.0 for part in layers if part.get("rope_type") not in _STRETCHED
    ]
    return factors[-1] if factors else 1.0


@dataclass(frozen=True)
class Demand:
    """The longest prompt of a kind and the longest completion that may follow it, in tokens."""

    prompts: str
    """Their name in messages."""
    prompt: int
    setting: str
    """The configuration key that bounds completions."""
    completion: int

    @classmethod
    def of(cls, kind: str, prompts: Sequence[Prompt], setting: str, completion: int) -> Demand:
        """The demand of these prompts, followed by completions of up to `completion` tokens."""
        longest = max((len(prompt.token_ids) for prompt in prompts), default=0)
        return cls(kind, longest, setting, completion)

    @property
    def tokens(self) -> int:
        """Tokens of prompt and completion together."""
        return self.prompt + self.completion


def require_context(
    model: str, limit: int | None, demands: Iterable[Demand], prompt_setting: str
) -> None:
    """Raises UserError with every demand beyond `limit` tokens; None is no limit.

    `prompt_setting` is the configuration key that bounds prompts.
    """
    problems = [
        f"{demand.prompts}: the longest prompt has {demand.prompt} tokens, with "
        f"{demand.setting}={demand.completion} that makes {demand.tokens}; "
        + _remedy(demand, limit, prompt_setting)
        for demand in demands
        if limit is not None and demand.tokens > limit
    ]
    if problems:
        raise UserError.join(f"{model} takes {limit} tokens, which is too few:", problems)


def _remedy(demand: Demand, limit: int, prompt_setting: str) -> str:
    room = limit - demand.prompt
    lower = f"{demand.setting}={room} would fit" if room > 0 else f"lower {demand.setting}"
    return f"{lower}, or allow only shorter prompts ({prompt_setting})"
