"""Attention limited to each sequence of a packed row.

Flash attention takes the sequences' lengths. With SDPA sequences of one length share a call, which
computes nothing across sequences and needs no mask: a block-diagonal mask over the row costs
(Σn)² instead of Σn² (benchmarks/packing.py). There a prompt that several sequences of the row
begin with stands in it once, and is repeated for the call alone. Other implementations get the
mask from transformers, which finds the sequences by the restarts of their positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from bandpo.errors import UserError
from bandpo.learner.layouts import Batch, PackedBatch, PaddedBatch, SharedPromptBatch
from bandpo.model.features import refuse_dropped

BY_SEQUENCE = "sdpa_by_sequence"


def layout_for(attention: str, packing: bool) -> tuple[type[Batch], str]:
    """How batches are laid out, and transformers' attn_implementation, for `model.attention`."""
    if not packing:
        return PaddedBatch, attention
    return (SharedPromptBatch, BY_SEQUENCE) if attention == "sdpa" else (PackedBatch, attention)


def packed_arguments(
    implementation: str,
    device: torch.device,
    lengths: Sequence[int],
    gather: Tensor | None = None,
    back: Tensor | None = None,
) -> dict[str, Any]:
    """What the model is told beside the tokens of a row (`bandpo.learner.layouts.Rows`).

    Nothing where rows hold one sequence each.
    """
    if not lengths:
        return {}
    positions = torch.cat([torch.arange(length) for length in lengths]).to(device)
    if implementation == BY_SEQUENCE:
        return {
            "position_ids": (positions if back is None else positions[back])[None],
            "sequence_lengths": tuple(lengths),
            "gather": gather,
            "back": back,
        }
    if "flash" not in implementation:
        return {"position_ids": positions[None]}
    ends = torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32)
    return {
        "position_ids": positions[None],
        **{"cu_seq_lens_q": ends, "cu_seq_lens_k": ends},
        **{"max_length_q": max(lengths), "max_length_k": max(lengths)},
    }


def sdpa_by_sequence(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    sequence_lengths: Sequence[int] = (),
    gather: Tensor | None = None,
    back: Tensor | None = None,
    sliding_window: int | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """transformers' SDPA for each sequence alone, causal; query [1, heads, L, size] → [1, L, …].

    Neighbours of one length share a call. Without lengths every row is a sequence. Raises
    UserError where a sliding window would have to cut one, or the scores are not the usual.
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
        tokens = [t.index_select(0, gather) for t in tokens]
    runs = [(length, len(list(run))) for length, run in groupby(lengths)]
    sizes = [length * count for length, count in runs]
    pieces = zip(runs, *(t.split(sizes) for t in tokens), strict=True)
    outputs = []
    for (length, count), *piece in pieces:
        rows = [t.unflatten(0, (count, length)).transpose(1, 2) for t in piece]
        outputs.append(sdpa(module, *rows, None, **settings)[0].flatten(0, 1))
    output = torch.cat(outputs)
    return (output if back is None else output.index_select(0, back))[None], None


AttentionInterface.register(BY_SEQUENCE, sdpa_by_sequence)
