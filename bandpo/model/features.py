"""Settings of config.json that another implementation of the model may omit without an error."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bandpo.config.schema import Config, longest_sequence
from bandpo.errors import UserError
from bandpo.model.files import refuse_quantised

_NOISE = re.compile(r"drop|jitter|noise")
# A classifier's head, which a language model has not.
_OTHER_HEADS = re.compile(r"^(summary|classifier|cls|head)_")
_LIKELY = re.compile(r"soft_?cap|logit|multiplier|scal|alibi|sink|window|chunk|clip_qkv|qk_norm")
_UNLIKELY = re.compile(r"rope|scaling_factor|router|max_window_layers|use_sliding_window")
# Among kinds of layers, and where there are none among settings.
_RECURRENT = re.compile(r"linear_attention|hybrid|mamba|ssm_|state_size|conv|recurrent")
SOFTCAPS = ("attn_logit_softcapping", "attention_logits_soft_cap", "attn_logit_soft_cap")
SETTINGS = {"softcap": "attn_logit_softcapping", "s_aux": "attention sinks"}
"""Arguments that transformers' attention layers pass on, and the features that they stand for."""


def examine(path: str | Path, lm_config: Any, config: Config) -> list[str]:
    """Notes on a model to report to the user; raises UserError for one that cannot be trained.

    `lm_config` is transformers' configuration of the model at `path`.
    """
    refuse_quantised(path, lm_config)
    refuse_softcap(lm_config, config.model.attention)
    refuse_chunks(lm_config, longest_sequence(config))
    if config.learner.packing:
        refuse_state(lm_config, config.model.attention)
    noise = training_noise(lm_config)
    if not noise:
        return []
    settings = ", ".join(f"{name}={value:g}" for name, value in noise.items())
    return [
        "dropout stays off in updates, or ratios would compare two draws: config.json has "
        + settings
    ]


def settings_of(config: Any) -> Iterator[tuple[str, Any]]:
    """Every setting of the text model under its dotted name."""
    yield from _flat(config.get_text_config().to_dict(), "")


def _flat(settings: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def training_noise(config: Any) -> dict[str, float]:
    """Settings above 0 that draw at random in training: dropout, layerdrop, jitter."""
    return {
        name: value
        for name, value in settings_of(config)
        if _NOISE.search(name) and not _OTHER_HEADS.match(name) and _is_positive(value)
    }


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def likely_settings(config: Any) -> str:
    """A model's settings that other implementations omit most often, for an error message."""
    found = [
        f"{name}={value}"
        for name, value in settings_of(config)
        if _LIKELY.search(name) and not _UNLIKELY.search(name) and value not in (None, False, 1)
    ]
    found.sort(key=lambda text: "softcap" not in text and "logit" not in text)
    suspects = ", ".join(found[:6]) or "no setting that is known to be omitted"
    return f"{config.model_type}'s config.json: {suspects}"


def softcap_of(config: Any) -> str | None:
    """The setting that caps attention scores, which SDPA cannot do; None where there is none."""
    caps = (f"{name}={value}" for name, value in settings_of(config) if name in SOFTCAPS and value)
    return next(caps, None)


def refuse_softcap(config: Any, attention: str) -> None:
    """Raises UserError for capped attention scores under an implementation that omits the cap."""
    if (cap := softcap_of(config)) and "sdpa" in attention:
        raise UserError(
            f"config.json has {cap}, which model.attention=sdpa omits: set "
            "model.attention=eager and learner.packing=false, or model.attention=flash_attention_2"
        )


def refuse_chunks(config: Any, longest: int) -> None:
    """Raises UserError for attention in chunks that a sequence of `longest` tokens would exceed."""
    text = config.get_text_config()
    chunk = getattr(text, "attention_chunk_size", None)
    in_chunks = "chunked_attention" in (getattr(text, "layer_types", None) or ())
    if chunk and in_chunks and longest > chunk:
        raise UserError(
            f"config.json has attention_chunk_size={chunk}: longer sequences are not supported, "
            f"but data.max_prompt_tokens and the longest completion add up to {longest} tokens"
        )


def refuse_dropped(settings: Mapping[str, Any], where: str, instead: str) -> None:
    """Raises UserError for an argument of attention that an implementation would ignore."""
    for name, meaning in SETTINGS.items():
        if settings.get(name) is not None:
            raise UserError(f"{where} omits this model's {meaning}; {instead}")


def refuse_state(config: Any, attention: str) -> None:
    """Raises UserError for layers that carry a state from a sequence of a row to the next.

    In bfloat16 a small leak is less than rounding, so it cannot be told from log-probabilities.
    Flash attention passes on where sequences end.
    """
    if (kinds := stateful_layers(config)) and "flash" not in attention:
        raise UserError(
            f"learner.packing=true: this model has layers ({kinds}) that carry a state from one "
            "sequence of a row to the next; set learner.packing=false"
        )


def stateful_layers(config: Any) -> str:
    """The kinds of a model's layers that are no attention but recurrent; empty without any."""
    text = config.get_text_config()
    kinds = getattr(text, "layer_types", None) or getattr(text, "layers_block_type", None)
    if kinds is None:
        kinds = [name for name, _ in settings_of(config)]
    return ", ".join(sorted({str(kind) for kind in kinds if _RECURRENT.match(str(kind))}))
