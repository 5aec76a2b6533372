"""The processes of a job: this one's rank, and the few collectives that the loop needs."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from copy import copy
from types import TracebackType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from bandpo.ranks.joining import TIMEOUT, announce_single_process, join, own_device
from bandpo.ranks.shared_memory import remove_stale_buffers

T = TypeVar("T")


class Ranks:
    """One process of `size`; every method that takes a value is collective."""

    def __init__(self) -> None:
        """Joins the job that a launcher (torchrun, deepspeed, SLURM) announced, or makes one."""
        announce_single_process()
        remove_stale_buffers(int(os.environ["RANK"]))
        self.device = own_device()
        self._made_group = join(self.device)
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._group: dist.ProcessGroup | None = None  # all of them

    def apart(self) -> Ranks:
        """The same processes with a process group of their own on the CPU, for another thread."""
        others = copy(self)
        others._group = dist.new_group(backend="gloo", timeout=TIMEOUT)
        others.device = torch.device("cpu")
        return others

    @property
    def is_first(self) -> bool:
        """Whether this process writes the run's files."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """This rank's part of a list that all ranks hold: every size-th item."""
        return list(items[self.rank :: self.size])

    def gather_interleaved(self, items: Sequence[T]) -> list[T]:
        """The inverse of `share`: the whole list, in its order, on every rank."""
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

    def gather_to_first(self, value: T) -> list[T]:
        """Every rank's value, in the order of the ranks, on the first; nothing on the others."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size if self.is_first else []
        dist.gather_object(value, values or None, group=self._group)
        return values

    def exchange(
        self,
        pieces: Sequence[Tensor],
        leaving: Sequence[int],
        coming: Sequence[int],
        dtype: torch.dtype,
    ) -> Tensor:
        """The elements that the ranks send to this one, one rank's after another, on the CPU.

        `pieces`, one after another, are those for the first rank, for the second, …: as many
        elements as `leaving` says for each. `coming` says how many each rank sends to this one.
        """
        sent = torch.cat([torch.empty(0, dtype=dtype), *pieces]).to(self.device)
        received = sent.new_empty(sum(coming))
        if self.size > 1:
            dist.all_to_all_single(received, sent, list(coming), list(leaving), self._group)
        return received.cpu()

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
        """Whether `here` is true on any rank."""
        if self.size == 1:
            return here
        return bool(self.max(torch.tensor(float(here), device=self.device)))

    def agree(self, action: Callable[[], T]) -> list[T]:
        """Runs an action that may find the disk full; every rank's result, on every rank.

        Raises OSError on all ranks if any rank's action did, with the first of the messages.
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
        """The result, on every rank, of an action that only the first runs; errors as `agree`."""
        return self.agree(lambda: action() if self.is_first else None)[0]  # type: ignore

    def raise_any(self, failure: Exception | None) -> None:
        """Raises the first failed rank's error on every rank."""
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
        # before this one has reported why.
        if error is None or self.size == 1:
            self.close()

    def close(self) -> None:
        """Leaves the job, if it was this that joined it: others may use the process group still."""
        if self._made_group and dist.is_initialized():
            dist.destroy_process_group()


class Alone(Ranks):
    """A process by itself, which joins no job; its collectives return at once."""

    def __init__(self) -> None:
        self.rank, self.size, self.device = 0, 1, torch.device("cpu")

    def apart(self) -> Ranks:
        """Itself."""
        return self

    def close(self) -> None:
        """Nothing: a process group that there may be is not its own."""
