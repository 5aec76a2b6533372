"""The processes of a job: who we are, and the few collectives that the loop needs."""

from __future__ import annotations

import fcntl
import hashlib
import os
import socket
import sys
from collections.abc import Callable, Sequence
from copy import copy
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from bandpo.cache import cache_dir
from bandpo.learner.shared_memory import remove_stale_buffers

T = TypeVar("T")

PATIENCE = timedelta(hours=2)
"""How long ranks wait for the slowest one; DeepSpeed's own 10 minutes are less than a server takes
to be given up (`rollout.engine.timeout_s`), or the first rank to download a model."""
ALONE = "BANDPO_ALONE"
"""In the environment: the process that announced itself for want of a launcher, and its port.

A launcher that such a process starts announces another port: what it says counts again."""


class Ranks:
    """One process of `size`; every method that takes a value is collective."""

    def __init__(self) -> None:
        """Joins the job that a launcher (torchrun, deepspeed, SLURM) announced, or makes one."""
        _announce_single_process()
        remove_stale_buffers(int(os.environ["RANK"]))
        self.device = _device()
        _join(self.device)
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._group: dist.ProcessGroup | None = None  # all of them

    def apart(self) -> Ranks:
        """The same processes with collectives of their own, on the CPU, for a thread of its own."""
        others = copy(self)
        others._group = dist.new_group(backend="gloo", timeout=PATIENCE)
        others.device = torch.device("cpu")
        return others

    @property
    def is_first(self) -> bool:
        """Whether this process writes the run's files."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """This rank's part of a list that all ranks hold: every size-th item."""
        return list(items[self.rank :: self.size])

    def unshare(self, items: Sequence[T]) -> list[T]:
        """The list that `share` cut up, whole on every rank."""
        parts = self.gather(items)
        rounds = range(max(map(len, parts)))
        return [part[index] for index in rounds for part in parts if index < len(part)]

    def gather(self, value: T) -> list[T]:
        """Every rank's value, in the order of the ranks, on every rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, self._group)
        return values

    def sum(self, tensor: Tensor) -> Tensor:
        """The element-wise sum over ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor, dist.ReduceOp.SUM, self._group)
        return tensor

    def max(self, tensor: Tensor) -> Tensor:
        """The element-wise maximum over ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor, dist.ReduceOp.MAX, self._group)
        return tensor

    def any(self, here: bool) -> bool:
        """Whether it is so on any rank."""
        if self.size == 1:
            return here
        return bool(self.max(torch.tensor(float(here), device=self.device)))

    def agree(self, action: Callable[[], T]) -> list[T]:
        """Takes an action that may meet a full disk; every rank's result, on every rank.

        Raises OSError on all ranks where it was raised on any, with the first of the messages.
        """
        result: Any = None
        problem: str | None = None
        try:
            result = action()
        except OSError as error:
            problem = str(error) or repr(error)
        outcomes = self.gather((result, problem))
        if first := next((problem for _, problem in outcomes if problem), None):
            raise OSError(first)
        return [result for result, _ in outcomes]

    def on_first(self, action: Callable[[], T]) -> T:
        """The result, on every rank, of an action that the first alone takes; else as `agree`."""
        return self.agree(lambda: action() if self.is_first else None)[0]  # type: ignore

    def raise_any(self, failure: Exception | None) -> None:
        """Raises on every rank what the first of those that failed has to say."""
        for found in self.gather(failure):
            if found is not None:
                raise found

    def barrier(self) -> None:
        """Waits for every rank."""
        if self.size > 1:
            dist.barrier(self._group)

    def __enter__(self) -> Ranks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        # After an error this could wait for ranks that never come, and would make the others fail
        # before this one has said why.
        if error is None or self.size == 1:
            self.close()

    def close(self) -> None:
        """Leaves the job."""
        if dist.is_initialized():
            dist.destroy_process_group()


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
