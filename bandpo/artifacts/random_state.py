"""The random states of a rank in a checkpoint, as plain JSON values: nothing is pickled."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seeds Python, NumPy and torch (with its GPUs)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def save_random_state(checkpoint: Path, rank: int) -> None:
    """Writes the states of Python, NumPy, torch and this process's GPU to the file of a rank."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": [kind, np.asarray(keys).tolist(), *rest],
        "torch": _hex(torch.get_rng_state()),
    }
    if torch.cuda.is_available():
        state["cuda"] = _hex(torch.cuda.get_rng_state())
    file = _file(checkpoint, rank)
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(state), encoding="utf-8")


def load_random_state(checkpoint: Path, rank: int) -> None:
    """Restores the states of a rank; does nothing for one that the checkpoint does not have."""
    file = _file(checkpoint, rank)
    if not file.exists():
        return
    state = json.loads(file.read_text(encoding="utf-8"))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(_bytes(state["torch"]))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(_bytes(state["cuda"]))


def _file(checkpoint: Path, rank: int) -> Path:
    return checkpoint / "random" / f"rank_{rank}.json"


def _hex(tensor: torch.Tensor) -> str:
    return tensor.numpy().tobytes().hex()


def _bytes(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8).clone()
