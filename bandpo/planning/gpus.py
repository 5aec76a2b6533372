"""GPUs by their data sheets, and clusters of them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from bandpo.errors import UserError

GIB = 2**30
BYTES = {"float32": 4, "bfloat16": 2}
RESERVED = 0.06
"""Share of a GPU's memory for CUDA's context, NCCL's buffers and fragmentation."""


@dataclass(frozen=True)
class GPU:
    """A data sheet: memory, dense bfloat16 FLOP/s, bytes/s of memory and to its node's GPUs."""

    name: str
    memory_gib: float
    flops: float
    bandwidth: float
    link: float


GPUS = {
    gpu.name: gpu
    for gpu in (
        GPU("A100-40", 40, 312e12, 1.56e12, 300e9),
        GPU("A100", 80, 312e12, 2.04e12, 300e9),
        GPU("H20", 96, 148e12, 4.0e12, 450e9),
        GPU("H100", 80, 989e12, 3.35e12, 450e9),
        GPU("H200", 140, 989e12, 4.8e12, 450e9),
        GPU("B200", 180, 2250e12, 7.7e12, 900e9),
        GPU("L40S", 48, 362e12, 0.864e12, 32e9),
    )
}
GPUS_PER_NODE = 8
NETWORK = 50e9  # bytes/s per GPU between nodes: 400 Gbit/s


@dataclass(frozen=True)
class Cluster:
    """Equal GPUs, eight per node."""

    count: int
    gpu: GPU

    @classmethod
    def of(cls, text: str) -> Cluster:
        """`8xH200`; raises UserError for a GPU that is not known."""
        found = re.fullmatch(r"(\d+)x([A-Za-z0-9-]+)", text)
        if found is None or found[2] not in GPUS or int(found[1]) < 1:
            raise UserError(
                f"cluster {text!r} is not <number>x<GPU>, such as 8xH200; "
                f"known GPUs: {', '.join(GPUS)}"
            )
        return cls(int(found[1]), GPUS[found[2]])

    @property
    def link(self) -> float:
        """Bytes/s between GPUs over the slowest link of a collective."""
        return self.gpu.link if self.count <= GPUS_PER_NODE else min(self.gpu.link, NETWORK)

    def __str__(self) -> str:
        return f"{self.count}x{self.gpu.name}"
