"""How a process finds its place among the ranks, with a launcher or without."""

from __future__ import annotations

import fcntl
import hashlib
import os
import socket
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from bandpo.disk.cache import cache_dir

PATIENCE = timedelta(hours=2)
ALONE = "BANDPO_ALONE"


def _announce_single_process() -> None:
    """Takes the launcher's place where there is none.

    What a single process announces is for itself: one that it starts has a job of its own.
    """
    process, _, port = os.environ.get(ALONE, "").partition(" ")
    inherited = port and port == os.environ.get("MASTER_PORT") and process != str(os.getpid())
    if "RANK" in os.environ and not inherited:
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ.update(
        RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    os.environ[ALONE] = f"{os.getpid()} {port}"


def _device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def _operators_folder() -> Path:
    """Where DeepSpeed's CPU operator is built: a folder of this environment's own.

    In PyTorch's common one it would be built again whenever another environment was there last.
    """
    environment = hashlib.sha256(sys.prefix.encode()).hexdigest()[:12]
    return cache_dir() / "operators" / environment


def _build_operators(folder: Path) -> None:
    """Builds DeepSpeed's CPU operator, one process at a time, always with the same ninja.

    PyTorch's own lock is a file, which a process that is killed while it compiles leaves behind:
    every later one would wait for it forever. And it takes the first ninja of PATH: another
    release (an environment that is not activated, beside a system's own) builds all again.
    """
    from deepspeed.comm.torch import build_shm_op

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "building").open("w", encoding="utf-8") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)  # ends with the process that holds it
        for left in folder.glob("*/lock"):
            left.unlink()
        path = os.environ.get("PATH", os.defpath)
        os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), path])
        try:
            build_shm_op()
        finally:
            os.environ["PATH"] = path


def _join(device: torch.device) -> None:
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        own = _operators_folder()
        if os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(own)) == str(own):
            _build_operators(own)
    import deepspeed

    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        deepspeed.init_distributed(backend, verbose=False, timeout=PATIENCE)
