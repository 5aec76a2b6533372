"""Many runs on few engines: worker processes train one run after another and keep their engine."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from threading import Lock

from bandpo.config.composition import compose
from bandpo.config.schema import Config
from bandpo.cpu import usable_cores
from bandpo.errors import UserError
from bandpo.run.console import protect_output
from bandpo.run.host import Host
from bandpo.train import run

Task = Callable[[Host], None]
"""A run, or what surrounds one; it travels to a worker, and so must be picklable."""

_host: Host | None = None


@dataclass(frozen=True)
class Training:
    """The task of one run of `bandpo train` with these hydra overrides."""

    overrides: tuple[str, ...]

    def __call__(self, host: Host) -> None:
        run(compose("train", self.overrides, Config, host.ranks.size), host)


def launch_series(
    tasks: Sequence[Task],
    processes: int = 1,
    report: Callable[[int, int], None] = lambda index, code: None,
) -> list[int]:
    """Does every task in one of `processes` workers, which share the cores.

    Returns the exit codes in order: 0, 2 for bad input, 1 for anything else. A worker in which a
    task fails unexpectedly, or that dies, is replaced, and the next task has a fresh one. `report`
    hears the index and exit code of each task that ended.
    """
    codes = [1] * len(tasks)
    waiting = iter(enumerate(tasks))
    turn = Lock()

    def take() -> Iterator[tuple[int, Task]]:
        while True:
            with turn:
                item = next(waiting, None)
            if item is None:
                return
            yield item

    def work() -> None:
        worker = _worker(processes)
        try:
            for index, task in take():
                try:
                    codes[index] = worker.submit(_do, task).result()
                except BrokenProcessPool:
                    worker.shutdown(wait=False)
                    worker = _worker(processes)
                report(index, codes[index])
        finally:
            worker.shutdown(wait=True)

    with ThreadPoolExecutor(processes) as threads:
        for future in [threads.submit(work) for _ in range(processes)]:
            future.result()
    return codes


def _worker(processes: int) -> ProcessPoolExecutor:
    """One fresh process; a worker that breaks takes only its own task with it."""
    share = max(1, usable_cores() // processes)
    return ProcessPoolExecutor(
        1, mp_context=get_context("spawn"), initializer=partial(_prepare, share)
    )


def _prepare(threads: int) -> None:
    """Of a worker's own: streams, and threads, which vLLM and torch count when they start some."""
    protect_output()
    import torch

    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)


def _do(task: Task) -> int:
    """In a worker: one task on the worker's host."""
    global _host
    try:
        _host = _host or Host()
        task(_host)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except Exception:
        # What the engine holds is not known any more: end this process, and the engine with it.
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    return 0
