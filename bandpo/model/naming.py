"""A model's tensors as its files have them, where transformers computes with others.

transformers stacks the experts of a layer, for one, while files and engines have them apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor


def named_tensors(lm: Any) -> Iterator[tuple[str, Tensor]]:
    """Parameters and the buffers that files hold beside them (a router's bias), module by module.

    A parameter with two names has both.
    """
    for path, module in lm.named_modules(remove_duplicate=False):
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and name not in module._non_persistent_buffers_set:
                yield f"{path}.{name}" if path else name, tensor


def is_converted(lm: Any) -> bool:
    """Whether transformers renames or rearranges tensors of this model as it reads its files."""
    from transformers.conversion_mapping import get_model_conversion_mapping

    conversions = getattr(lm, "_weight_conversions", None)
    if conversions is None:  # not made from files
        conversions = get_model_conversion_mapping(lm, add_legacy=False)
    return bool(conversions)


def in_files(lm: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A model's tensors, whole layers of them, under the names and in the shapes of its files."""
    from transformers.core_model_loading import revert_weight_conversion

    return dict(revert_weight_conversion(lm, dict(tensors)))


@torch.no_grad()
def load_from_files(lm: Any, weights: Iterable[tuple[str, Tensor]]) -> None:
    """Copies tensors of a model's files into the model; raises RuntimeError if some lack."""
    own = dict(named_tensors(lm))
    places = _places(lm, own) if is_converted(lm) else dict.fromkeys(own)
    missing = set(places)
    for name, tensor in weights:
        if (place := places[name]) is None:
            own[name].copy_(tensor)
        else:
            owner, index = place
            own[owner].view(-1)[index] = tensor.to(own[owner]).flatten()
        missing.discard(name)
    if missing:
        raise RuntimeError(f"the weight stream lacks {sorted(missing)[:5]}")


def _places(lm: Any, own: Mapping[str, Tensor]) -> dict[str, tuple[str, Tensor] | None]:
    """Of each tensor of the files the model's tensor that holds it, and where, flattened.

    None where both have one name. Found by rearranging the elements' numbers as the elements are.
    """
    names = list(own)
    starts = [0, *accumulate(tensor.numel() for tensor in own.values())]
    numbers = {
        name: torch.arange(start, start + own[name].numel()).view(own[name].shape)
        for name, start in zip(names, starts, strict=False)
    }
    ends = torch.tensor(starts[1:])
    places: dict[str, tuple[str, Tensor] | None] = {}
    for name, index in in_files(lm, numbers).items():
        owner = int(torch.searchsorted(ends, index.min(), right=True))
        if index.max() >= ends[owner]:
            raise RuntimeError(f"{name} lies in several tensors of {type(lm).__name__}")
        places[name] = None if name in own else (names[owner], index.flatten() - starts[owner])
    return places
