"""Loads a transformers model from its files, with no weight drawn at random."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from bandpo.cpu import separate_compile_caches
from bandpo.disk.hub import asked_once
from bandpo.errors import UserError, listed
from bandpo.model.tying import as_its_files_are

_COMPUTED = ("masked_bias", "inv_freq", "position_ids")
"""Suffixes of tensors in old files that models now compute."""


def load_causal_lm(
    path: str | Path, *, dtype: str, attention: str, trust_remote_code: bool = False
) -> Any:
    """A causal language model whose every weight is read from the files.

    transformers would draw missing weights at random: differently for the policy and its reference.
    Raises UserError that names the tensors that are missing, have another shape than config.json
    says, or belong to a layer that has no place for them.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    separate_compile_caches()  # flex_attention is compiled
    try:
        with asked_once(path):
            config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
            lm, report = AutoModelForCausalLM.from_pretrained(
                path,
                dtype=getattr(torch, dtype),
                attn_implementation=attention,
                trust_remote_code=trust_remote_code,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # so that they can be named
                **as_its_files_are(path, config),
            )
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        reason = str(error).split(". ")[0].rstrip(".")
        if "Flash" in reason:
            reason += "; install it, or set model.attention=sdpa"
        elif "attention implementation" in reason:
            reason += "; set model.attention=eager, learner.packing=false and rollout=vllm_local"
        raise UserError(f"model.path={path} cannot be loaded: {reason}") from None
    except RuntimeError as error:
        if "loading state_dict" not in str(error):
            raise
        raise UserError(f"model.path={path} cannot be loaded: {error}") from None
    _require_shapes(path, report["mismatched_keys"])
    _require_whole(path, lm, report["missing_keys"])
    _require_a_place(path, lm, report["unexpected_keys"])
    return lm


def _require_shapes(path: str | Path, mismatched: Iterable[tuple[str, Any, Any]]) -> None:
    wrong = [
        f"{name} is {tuple(found)} in the file, {tuple(wanted)} in the model"
        for name, found, wanted in sorted(mismatched)
    ]
    if wrong:
        raise UserError(
            f"model.path={path}: config.json is of another model: {listed(wrong, separator='; ')}"
        )


def _require_whole(path: str | Path, lm: Any, missing: Iterable[str]) -> None:
    lacking = sorted(missing)
    if not lacking:
        return
    head = lm.get_output_embeddings()
    heads = {f"{name}.weight" for name, module in lm.named_modules() if module is head}
    hint = (
        "; where the head is the embedding, set tie_word_embeddings to true in config.json"
        if heads & set(lacking) and not lm.config.get_text_config().tie_word_embeddings
        else ""
    )
    raise UserError(
        f"model.path={path}: the weights lack {listed(lacking)}, which would be drawn at random: "
        f"the checkpoint is incomplete, or not of the model that config.json describes{hint}"
    )


def _require_a_place(path: str | Path, lm: Any, unexpected: Iterable[str]) -> None:
    """Refuses tensors of the model's own layers; transformers reports those of other modules."""
    modules = {name for name, _ in lm.named_modules()}
    buffers = {name for name, _ in lm.named_buffers()}
    foreign = [
        name
        for name in sorted(unexpected)
        if name.rpartition(".")[0] in modules
        and name not in buffers
        and not name.endswith(_COMPUTED)
    ]
    if foreign:
        raise UserError(
            f"model.path={path}: the weights contain {listed(foreign)}, for which the model that "
            "config.json describes has no place: without them it computes something else (weights "
            "quantised without quantization_config, a bias that config.json turns off)"
        )
