"""The learner's weights as a stream of (name, tensor), gathered from ZeRO-3's shards."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import groupby
from typing import Any

from torch import Tensor, nn

from bandpo.model.naming import in_files, is_converted, named_tensors

_LAYER = re.compile(r"^(.*?\.\d+)\.")


def layer_of(name: str) -> str:
    """The layer with which a parameter is gathered: `model.layers.3` for `model.layers.3.mlp…`."""
    match = _LAYER.match(name)
    return match.group(1) if match else name


def gathered(parameters: list[nn.Parameter]) -> Any:
    """A context in which ZeRO-3's shards are whole; a no-op for whole parameters."""
    if not any(hasattr(parameter, "ds_id") for parameter in parameters):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(parameters)


def weight_stream(lm: Any) -> Iterator[tuple[str, Tensor]]:
    """Yields every tensor of the model's files, layer by layer.

    Collective under ZeRO-3: all ranks must exhaust it. At most one layer is whole at a time.
    A tied head is yielded beside the embedding that it shares, since an engine that keeps two
    copies would otherwise keep the old one. LoRA layers are yielded merged.
    """
    named = list(named_tensors(lm))
    converted = is_converted(lm)
    for _, layer in groupby(named, key=lambda item: layer_of(item[0])):
        members = list(layer)
        parameters = {id(t): t for _, t in members if isinstance(t, nn.Parameter)}
        with gathered(list(parameters.values())):
            own = (_merged(lm, name, t) for name, t in members if ".lora_" not in name)
            yield from in_files(lm, dict(own)).items() if converted else own


def _merged(lm: Any, name: str, tensor: Tensor) -> tuple[str, Tensor]:
    """A tensor under its name without adapters, its layer's LoRA added; the layer stays."""
    path, _, kind = name.rpartition(".")
    weight = tensor.detach()
    owner = path.replace(".base_layer", "")
    if path.endswith(".base_layer"):
        for layer in _adapters(lm.get_submodule(owner)):
            if getattr(layer, "parameter_name", "weight") == kind:
                for adapter in layer.active_adapters:
                    weight = weight + layer.get_delta_weight(adapter).detach()
    return f"{owner}.{kind}", weight


def _adapters(layer: Any) -> Iterator[Any]:
    """A layer's wrappers of peft; each tensor of stacked experts has one around the others."""
    while hasattr(layer, "base_layer"):
        yield layer
        layer = layer.base_layer
