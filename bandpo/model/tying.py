"""Whether a model's head is its input embedding, by its parameters or by its files.

A config's `tie_word_embeddings` may be wrong: where the files hold another head, transformers keeps
it apart and vLLM drops it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

HEADS = ("lm_head.weight", "embed_out.weight")
_EMBEDDINGS = ("emb", "wte")  # one of them is part of every embedding's name


def shares_head(lm: Any) -> bool:
    """Whether head and embedding are one parameter, under every ZeRO stage."""
    return lm.get_output_embeddings().weight is lm.get_input_embeddings().weight


def repeated_names(lm: nn.Module) -> frozenset[str]:
    """Checkpoint names of parameters that have an earlier name too: a tied head's."""
    seen: set[int] = set()
    repeated: set[str] = set()
    for name, parameter in lm.named_parameters(remove_duplicate=False):
        if id(parameter) in seen:
            repeated.add(name.replace(".base_layer", ""))
        seen.add(id(parameter))
    return frozenset(repeated)


def as_its_files_are(path: str | Path, model_config: Any) -> dict[str, bool]:
    """The setting that corrects a config which calls a head tied that the files hold apart.

    Empty where the config is right. It is for `from_pretrained`, which under ZeRO 3 sees no weights
    to compare, and for engines.
    """
    if not getattr(model_config, "tie_word_embeddings", False):
        return {}
    return {"tie_word_embeddings": False} if _holds_two(str(path)) else {}


def _holds_two(path: str) -> bool:
    """Whether the files hold a head that differs from every embedding."""
    from safetensors import safe_open

    places: dict[str, Path] = {}
    shapes: dict[str, list[int]] = {}
    for file in _weight_files(path):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - no mapping
                places[name], shapes[name] = file, tensors.get_slice(name).get_shape()

    def tensor(name: str) -> torch.Tensor:
        with safe_open(places[name], framework="pt") as tensors:
            return tensors.get_tensor(name)

    head = next((name for name in HEADS if name in places), None)
    if head is None:
        return False
    embeddings = [
        name
        for name, shape in shapes.items()
        if name != head and shape == shapes[head] and any(part in name for part in _EMBEDDINGS)
    ]
    own = tensor(head)
    return bool(embeddings) and not any(
        torch.equal(own, tensor(name).to(own.dtype)) for name in embeddings
    )


def _weight_files(path: str) -> list[Path]:
    """A folder's safetensors files, or those of a hub id, which loading would fetch as well."""
    folder = Path(path)
    if folder.is_dir():
        return sorted(folder.glob("*.safetensors"))
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

    lenient = {"_raise_exceptions_for_missing_entries": False}
    if index := cached_file(path, SAFE_WEIGHTS_INDEX_NAME, **lenient):
        places = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"]
        if not any(head in places for head in HEADS):
            return []
        return [Path(cached_file(path, name)) for name in sorted(set(places.values()))]
    file = cached_file(path, SAFE_WEIGHTS_NAME, **lenient)
    return [Path(file)] if file else []
