"""GPUs by their data sheets, and clusters of them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from bandpo.errors import UserError

GIB = 2**30
BYTES = {"float32": 4, "bfloat16": 2}
# Of a card's memory: CUDA's context, NCCL's buffers, fragmentation.
RESERVED = 0.06


@dataclass(frozen=True)
class Card:
    """A data sheet: memory, dense bfloat16 FLOP/s, bytes/s of memory and to its node's cards."""

    name: str
    memory_gib: float
    flops: float
    bandwidth: float
    link: float


CARDS = {
    card.name: card
    for card in (
        Card("A100-40", 40, 312e12, 1.56e12, 300e9),
        Card("A100", 80, 312e12, 2.04e12, 300e9),
        Card("H20", 96, 148e12, 4.0e12, 450e9),
        Card("H100", 80, 989e12, 3.35e12, 450e9),
        Card("H200", 140, 989e12, 4.8e12, 450e9),
        Card("B200", 180, 2250e12, 7.7e12, 900e9),
        Card("L40S", 48, 362e12, 0.864e12, 32e9),
    )
}
CARDS_A_NODE = 8
NETWORK = 50e9  # bytes/s a card between nodes: 400 Gbit/s


@dataclass(frozen=True)
class Cluster:
    """Equal cards, eight a node."""

    count: int
    card: Card

    @classmethod
    def of(cls, text: str) -> Cluster:
        """`8xH200`; raises UserError for a card that is not known."""
        found = re.fullmatch(r"(\d+)x([A-Za-z0-9-]+)", text)
        if found is None or found[2] not in CARDS or int(found[1]) < 1:
            raise UserError(
                f"cluster {text!r} is not <number>x<card>, such as 8xH200; "
                f"known cards: {', '.join(CARDS)}"
            )
        return cls(int(found[1]), CARDS[found[2]])

    @property
    def link(self) -> float:
        """Bytes/s between cards, the slowest way that a collective takes."""
        return self.card.link if self.count <= CARDS_A_NODE else min(self.card.link, NETWORK)

    def __str__(self) -> str:
        return f"{self.count}x{self.card.name}"
