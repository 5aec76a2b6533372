"""The tokens of a whole optimizer batch as rows of numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class TokenRows:
    """A row of K numbers per token, gathered piece by piece, in any order.

    Selections from them are exact: all rows come to every rank, 4·K bytes per token, and are sorted
    once, when the last piece has come.
    """

    pieces: tuple[Tensor, ...]

    @classmethod
    def of(cls, mask: Tensor, *columns: Tensor) -> TokenRows:
        """The unmasked tokens of a micro-batch, from K columns [B, T]."""
        kept = mask.bool()
        return cls((torch.stack([column.detach()[kept] for column in columns], dim=-1).cpu(),))

    def merge(self, other: TokenRows) -> TokenRows:
        """The rows of both."""
        return TokenRows(self.pieces + other.pieces)

    def ascending(self) -> Tensor:
        """All rows in lexicographic order, [N, K] float64: whatever the split, the same tensor."""
        rows = torch.cat(self.pieces).double()
        for column in reversed(range(rows.shape[1])):  # stable: the first column decides
            rows = rows[rows[:, column].argsort(stable=True)]
        return rows
