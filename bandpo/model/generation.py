"""The sampling settings of generation_config.json, which are used only where asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bandpo.disk.hub import asked_once
from bandpo.errors import UserError

FILE = "generation_config.json"
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
"""Its settings that `eval.sampling=model` takes, each under its own name in `eval`."""
# They say nothing of how tokens are drawn: identity, token ids, and forms of a reply.
_OTHERS = (
    *("_from_model_config", "_name_or_path", "transformers_version", "pad_token_id"),
    *("bos_token_id", "eos_token_id", "decoder_start_token_id", "use_cache"),
    *("output_attentions", "output_hidden_states", "output_scores", "output_logits"),
    "return_dict_in_generate",
)


@dataclass(frozen=True)
class GenerationSettings:
    """The file's settings besides token ids: those of sampling, and all others."""

    sampling: Mapping[str, Any] = field(default_factory=dict)
    others: Mapping[str, Any] = field(default_factory=dict)

    def unused(self) -> list[str]:
        """A note that its sampling settings have no effect; empty where it has none."""
        if not self.sampling:
            return []
        return [f"{FILE} has {in_words(self.sampling)}: not used (docs/sampling.md)"]


def in_words(settings: Mapping[str, Any]) -> str:
    """`temperature=0.6, top_p=0.95`."""
    return ", ".join(f"{key}={value}" for key, value in settings.items())


def generation_settings(path: str | Path) -> GenerationSettings:
    """The settings in the generation_config.json of a folder or hub id; none without that file.

    As written: transformers would fill in values of its own. Raises UserError for a file that
    cannot be read.
    """
    from transformers.utils import cached_file

    try:
        with asked_once(path):
            found = cached_file(str(path), FILE)
    except (OSError, ValueError):
        return GenerationSettings()
    try:
        content = json.loads(Path(found or "").read_text(encoding="utf-8"))
        given = {key: value for key, value in content.items() if value is not None}
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{found}: not a generation configuration: {error}") from None
    return GenerationSettings(
        sampling={key: given[key] for key in SAMPLING if key in given},
        others={k: v for k, v in given.items() if k not in (*SAMPLING, *_OTHERS)},
    )
