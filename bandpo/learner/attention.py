"""Attention limited to each sequence of a packed row.

Flash attention takes the sequences' lengths. With SDPA sequences of one length share a call, which
computes nothing across sequences and needs no mask: a block-diagonal mask over the row costs
(Σn)² instead of Σn² (benchmarks/packing.py). There a prompt that several sequences of the row
begin with is stored once, and repeated only for the call. Other implementations get the
mask from transformers, which finds the sequences by the restarts of their positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from bandpo.errors import UserError
from bandpo.learner.layouts import Batch, PackedBatch, PaddedBatch, SharedPromptBatch
from bandpo.model.features import refuse_dropped

BY_SEQUENCE = "sdpa_by_sequence"


@dataclass(frozen=True)
class Selection:
    """`index_select` by `places`, whose backward pass adds in a fixed order, and in float32.

    PyTorch's own adds by atomics on a GPU: in the tensor's dtype, in another order every time.

    order    `places` sorted by what they select
    counts   [length]: how often each token is selected
    """

    places: Tensor
    order: Tensor
    counts: Tensor

    @classmethod
    def of(cls, places: Tensor, length: int) -> Selection:
        """The places [N] in tensors of `length` tokens."""
        counts = places.new_zeros(length).scatter_add_(0, places, torch.ones_like(places))
        return cls(places, places.argsort(stable=True), counts)

    def __call__(self, tokens: Tensor) -> Tensor:
        """tokens [length, …] → those at the places [N, …]."""
        if not tokens.is_cuda:  # PyTorch's keeps the order, and is quicker
            return tokens.index_select(0, self.places)
        return _Selected.apply(tokens, self)  # type: ignore


class _Selected(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, selection: Selection) -> Tensor:
        ctx.selection = selection
        return tokens.index_select(0, selection.places)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        order, counts = ctx.selection.order, ctx.selection.counts
        received = grad.index_select(0, order).flatten(1).float()
        summed = torch.segment_reduce(received, "sum", lengths=counts, unsafe=True)
        return summed.to(grad.dtype).view(len(counts), *grad.shape[1:]), None


def layout_for(attention: str, packing: bool) -> tuple[type[Batch], str]:
    """How batches are laid out, and transformers' attn_implementation, for `model.attention`."""
    if not packing:
        return PaddedBatch, attention
    return (SharedPromptBatch, BY_SEQUENCE) if attention == "sdpa" else (PackedBatch, attention)


def packed_arguments(
    implementation: str,
    lengths: Sequence[int],
    positions: Tensor | None,
    ends: Tensor | None = None,
    gather: Tensor | None = None,
    back: Tensor | None = None,
) -> dict[str, Any]:
    """The model's arguments besides the tokens of a row (`bandpo.learner.layouts.Rows`).

    Empty where every row holds one sequence.
    """
    if positions is None:
        return {}
    arguments: dict[str, Any] = {"position_ids": positions}
    if implementation == BY_SEQUENCE:
        arguments["sequence_lengths"] = tuple(lengths)
        if gather is not None and back is not None:
            arguments["gather"] = Selection.of(gather, length=len(back))
            arguments["back"] = Selection.of(back, length=len(gather))
    elif "flash" in implementation:
        arguments |= {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends}
        arguments |= {"max_length_q": max(lengths), "max_length_k": max(lengths)}
    return arguments


def sdpa_by_sequence(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    sequence_lengths: Sequence[int] = (),
    gather: Selection | None = None,
    back: Selection | None = None,
    sliding_window: int | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """transformers' causal SDPA within each sequence; query [1, heads, L, size] → [1, L, …].

    Neighbours of one length share a call. Without lengths every row is a sequence. Raises
    UserError where a sliding window is shorter than a sequence, or attention scores are capped.
    """
    refuse_dropped(
        settings,
        "learner.packing=true with model.attention=sdpa",
        "set model.attention=eager and learner.packing=false",
    )
    del attention_mask  # transformers makes none for an implementation it does not know
    sdpa = AttentionInterface()["sdpa"]
    lengths = list(sequence_lengths) or [query.shape[2]]
    if sliding_window is not None and max(lengths) > sliding_window:
        raise UserError(
            f"learner.packing=true with model.attention=sdpa: a sequence of {max(lengths)} tokens "
            f"is longer than the model's attention window of {sliding_window}; set "
            "learner.packing=false or model.attention=flash_attention_2"
        )
    if not sequence_lengths:
        return sdpa(module, query, key, value, None, **settings)
    tokens = [t[0].transpose(0, 1) for t in (query, key, value)]  # [L, heads, size]
    if gather is not None:
        tokens = [gather(t) for t in tokens]
    runs = [(length, len(list(run))) for length, run in groupby(lengths)]
    sizes = [length * count for length, count in runs]
    pieces = zip(runs, *(t.split(sizes) for t in tokens), strict=True)
    outputs = []
    for (length, count), *piece in pieces:
        rows = [t.unflatten(0, (count, length)).transpose(1, 2) for t in piece]
        outputs.append(sdpa(module, *rows, None, **settings)[0].flatten(0, 1))
    output = torch.cat(outputs)
    return (output if back is None else back(output))[None], None


AttentionInterface.register(BY_SEQUENCE, sdpa_by_sequence)
