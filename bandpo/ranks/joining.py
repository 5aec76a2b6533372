"""Joins a process to its job, with a launcher or without."""

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
from bandpo.environment import unusable_gpus
from bandpo.errors import UserError

TIMEOUT = timedelta(hours=2)
"""How long ranks wait for the slowest one.

DeepSpeed's own 10 minutes are shorter than the wait for a lost server (`rollout.engine.timeout_s`)
or the first rank's download of a model.
"""
ALONE = "BANDPO_ALONE"
"""Environment variable: the process that announced itself for want of a launcher, and its port.

A launcher that such a process starts announces another port, and that announcement counts.
"""


def announce_single_process() -> None:
    """Sets what a launcher would set, where there is none.

    The announcement is for this process alone: a process that it starts has a job of its own.
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


def own_device() -> torch.device:
    """This rank's GPU, made the current one, or the CPU where there is none."""
    if not torch.cuda.is_available():
        if problem := unusable_gpus():
            raise UserError(problem)
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def _operators_folder() -> Path:
    """The folder of DeepSpeed's CPU operator for this Python environment.

    In PyTorch's default folder environments would rebuild each other's operator again and again.
    """
    environment = hashlib.sha256(sys.prefix.encode()).hexdigest()[:12]
    return cache_dir() / "operators" / environment


def build_operators(folder: Path) -> None:
    """Builds DeepSpeed's CPU operator, one process at a time, always with the same ninja.

    PyTorch's own lock is a file, which a process that is killed while it compiles leaves behind:
    every later one would wait for it forever. And PyTorch takes the first ninja of PATH, where
    another release of it rebuilds everything.
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


def join(device: torch.device) -> None:
    """Makes the job's process group, NCCL on GPUs and gloo on CPUs; collective."""
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        own = _operators_folder()
        if os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(own)) == str(own):
            build_operators(own)
    import deepspeed

    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        deepspeed.init_distributed(backend, verbose=False, timeout=TIMEOUT)
