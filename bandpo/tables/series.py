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
"""A run, or a function around one; it is sent to a worker, and so must be picklable."""

_host: Host | None = None


@dataclass(frozen=True)
class Training:
    """One run of `bandpo train` with these hydra overrides."""

    overrides: tuple[str, ...]

    def __call__(self, host: Host) -> None:
        run(compose("train", self.overrides, Config, host.ranks.size), host)


def launch_series(
    tasks: Sequence[Task],
    processes: int = 1,
    report: Callable[[int, int], None] = lambda index, code: None,
) -> list[int]:
    """Runs every task in one of `processes` workers, which share the cores.

    Returns the exit codes in order: 0, 2 for bad input, 1 for anything else. A worker in which a
    task fails unexpectedly, or that dies, is replaced. `report` receives the index and exit code
    of each task that has ended.
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
    """Sets up a worker: its streams, and the threads that vLLM and torch will use."""
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
        # The engine's state is unknown now: end this process, and the engine with it.
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    return 0
