"""Joins a process to its job, with a launcher or without."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shlex
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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
    """This rank's GPU, made the current one, or the CPU where there is none.

    Raises UserError where torch cannot use the GPUs that are there, or there are fewer than ranks.
    """
    if not torch.cuda.is_available():
        if problem := unusable_gpus():
            raise UserError(problem)
        return torch.device("cpu")
    place, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if place >= gpus:
        raise UserError(
            f"rank {place} of this machine has no GPU, torch sees {gpus}: start at most {gpus} "
            "rank(s) (torchrun --nproc-per-node, deepspeed --num_gpus), or run on the CPU with "
            "CUDA_VISIBLE_DEVICES= in the environment"
        )
    device = torch.device("cuda", place)
    torch.cuda.set_device(device)
    return device


def _operators_folder() -> Path:
    """Where DeepSpeed's operators are built: a folder of this environment's own.

    In PyTorch's common one they would be built again whenever another environment was there last.
    """
    environment = hashlib.sha256(sys.prefix.encode()).hexdigest()[:12]
    return cache_dir() / "operators" / environment


@contextmanager
def building_operators(folder: Path | None = None) -> Iterator[None]:
    """One process at a time builds DeepSpeed's operators in here, always with the same ninja.

    PyTorch's own lock is a file, which a process that is killed while it compiles leaves behind:
    every later one would wait for it forever. And it takes the first ninja of PATH: another
    release (an environment that is not activated, beside a system's own) builds all again. Where
    the user has named another folder (TORCH_EXTENSIONS_DIR), PyTorch's lock is left alone.
    """
    folder = folder or _operators_folder()
    if os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(folder)) != str(folder):
        with _libraries_of_any_path():
            yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "building").open("w", encoding="utf-8") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)  # ends with the process that holds it
        for left in folder.glob("*/lock"):
            left.unlink()
        path = os.environ.get("PATH", os.defpath)
        os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), path])
        try:
            with _libraries_of_any_path():
                yield
        finally:
            os.environ["PATH"] = path


@contextmanager
def _libraries_of_any_path() -> Iterator[None]:
    """Quotes the folder of torch's libraries, which PyTorch writes into a shell's line as it is."""
    from torch.utils import cpp_extension

    folder = cpp_extension.TORCH_LIB_PATH
    cpp_extension.TORCH_LIB_PATH = shlex.quote(folder)
    try:
        yield
    finally:
        cpp_extension.TORCH_LIB_PATH = folder


def require_reachable_host() -> None:
    """Raises UserError where gloo would announce this host to other nodes by a loopback address.

    gloo takes the address that the host's name resolves to, which is 127.0.1.1 on Debian; vLLM
    makes a gloo group over all ranks, and would wait in it for nodes that cannot connect.
    """
    if "GLOO_SOCKET_IFNAME" in os.environ:
        return
    name = socket.gethostname()
    try:
        address = socket.gethostbyname(name)
    except OSError as error:
        address = f"no address ({error})"
    if address.startswith(("127.", "no address")):
        raise UserError(
            f"several nodes: the name of this one, {name}, resolves to {address}, where no other "
            "node reaches it: set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the interface of "
            "the nodes' network on every node (ip -brief address lists them)"
        )


def join(device: torch.device) -> bool:
    """Makes the job's process group, NCCL on GPUs and gloo on CPUs; False if there was one.

    Collective. Raises UserError where another program has the port at which the ranks meet.
    """
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        with building_operators():
            from deepspeed.comm.torch import build_shm_op

            build_shm_op()
    import deepspeed

    if dist.is_initialized():
        return False
    backend = "nccl" if device.type == "cuda" else "gloo"
    try:
        deepspeed.init_distributed(backend, verbose=False, timeout=TIMEOUT)
    except dist.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        raise UserError(
            f"port {os.environ.get('MASTER_PORT')} of this machine, at which the ranks meet, is "
            "taken by another program: choose another (MASTER_PORT, or the launcher's option)"
        ) from None
    return True
