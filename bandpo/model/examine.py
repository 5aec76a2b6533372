"""What can be said of a model before its weights are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bandpo.config.schema import Config, longest_sequence
from bandpo.model.features import refuse_chunks, refuse_softcap, training_noise
from bandpo.model.files import refuse_quantised


def examine(path: str | Path, lm_config: Any, config: Config) -> list[str]:
    """Raises UserError for a model that cannot be trained as it is meant; what else to know of it.

    `lm_config` is transformers' configuration of the model at `path`.
    """
    refuse_quantised(path, lm_config)
    refuse_softcap(lm_config, config.model.attention)
    refuse_chunks(lm_config, longest_sequence(config))
    noise = training_noise(lm_config)
    if not noise:
        return []
    told = "config.json has " + ", ".join(f"{name}={value:g}" for name, value in noise.items())
    return [f"dropout is off in updates too, or ratios would compare two draws of it: {told}"]
