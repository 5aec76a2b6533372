"""The learner's weights as a stream of (name, tensor), gathered from ZeRO-3's shards."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import groupby
from typing import Any

from torch import Tensor, nn

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


def weight_stream(lm: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yields every parameter under its checkpoint name, layer by layer.

    Collective under ZeRO-3: all ranks must exhaust it. At most one layer is whole at a time.
    A tied head is yielded beside the embedding that it shares, since an engine that keeps two
    copies would otherwise keep the old one. LoRA layers are yielded merged.
    """
    named = list(lm.named_parameters(remove_duplicate=False))
    for _, layer in groupby(named, key=lambda item: layer_of(item[0])):
        members = list(layer)
        with gathered(list({id(p): p for _, p in members}.values())):
            for name, parameter in members:
                if ".lora_" not in name:
                    yield _merged(lm, name, parameter)


def _merged(lm: Any, name: str, parameter: nn.Parameter) -> tuple[str, Tensor]:
    """A parameter under its checkpoint name, its layer's LoRA added; the layer is not changed."""
    path, _, kind = name.rpartition(".")
    owner = path.removesuffix(".base_layer")
    if owner == path:
        return name, parameter.detach()
    weight = parameter.detach()
    if kind == "weight":
        layer = lm.get_submodule(owner)
        for adapter in layer.active_adapters:
            weight = weight + layer.get_delta_weight(adapter).detach()
    return f"{owner}.{kind}", weight
