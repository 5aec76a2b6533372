"""Attention limited to each sequence of a packed row.

Flash attention takes the sequences' lengths. With SDPA neighbours of one length share a call, which
computes nothing across sequences and needs no mask: a block-diagonal mask over the row costs
(Σn)² instead of Σn² (benchmarks/packing.py). Other implementations get that mask from transformers,
which finds the sequences by the restarts of their positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from bandpo.batching import Sample
from bandpo.errors import UserError

BY_SEQUENCE = "sdpa_by_sequence"


def implementation_for(attention: str, packing: bool) -> str:
    """transformers' attn_implementation for `model.attention`."""
    return BY_SEQUENCE if packing and attention == "sdpa" else attention


def packed_arguments(
    implementation: str, lengths: Sequence[int], device: torch.device
) -> dict[str, Any]:
    """What the model is told beside the tokens of one row of sequences; nothing without any."""
    if not lengths:
        return {}
    positions = torch.cat([torch.arange(length) for length in lengths])[None].to(device)
    if implementation == BY_SEQUENCE:
        return {"position_ids": positions, "sequence_lengths": tuple(lengths)}
    if "flash" not in implementation:
        return {"position_ids": positions}
    ends = torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32)
    return {
        "position_ids": positions,
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
    sliding_window: int | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """transformers' SDPA for each sequence alone, causal; query [1, heads, Σn, size] → [1, Σn, …].

    Micro-batches are sorted by length, so that calls are as few as there are lengths. Without
    lengths every row is a sequence. Raises UserError where a sliding window would have to cut one.
    """
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
    runs = [(length, len(list(run))) for length, run in groupby(lengths)]
    sizes = [length * count for length, count in runs]
    pieces = zip(runs, *(t.split(sizes, dim=2) for t in (query, key, value)), strict=True)
    outputs = []
    for (length, count), *piece in pieces:
        # [1, heads, count · length, size] → [count, heads, length, size]
        rows = [t[0].unflatten(1, (count, length)).transpose(0, 1) for t in piece]
        outputs.append(sdpa(module, *rows, None, **settings)[0].flatten(0, 1))
    return torch.cat(outputs)[None], None


def prove_packing(
    logprobs: Callable[[Sequence[Sample]], list[list[float]]], tolerance: float
) -> None:
    """Raises UserError where a sequence's log-probabilities change with its neighbours in a row.

    Models whose layers are not all attention would mix a row's sequences without an error.
    """
    first, second = (Sample((a, a + 1), (7, 8, 9, 10), 0.0, torch.zeros(4)) for a in (2, 12))
    alone = torch.tensor(logprobs([first]) + logprobs([second]))
    gap = float((torch.tensor(logprobs([first, second])) - alone).abs().max())
    if not gap <= tolerance:
        raise UserError(
            "learner.packing=true: this model mixes the sequences of a row (log-probabilities "
            f"differ by {gap:.3g}); set learner.packing=false"
        )


AttentionInterface.register(BY_SEQUENCE, sdpa_by_sequence)
