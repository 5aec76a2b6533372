"""Many runs on few engines: worker processes train one run after another and keep their engine."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from queue import SimpleQueue

from bandpo.config.composition import compose
from bandpo.config.schema import Config
from bandpo.cpu import usable_cores
from bandpo.errors import UserError
from bandpo.run.console import protect_output
from bandpo.run.host import Host
from bandpo.train import run

_host: Host | None = None


def launch_series(
    runs: Sequence[Sequence[str]],
    processes: int = 1,
    report: Callable[[int, int], None] = lambda index, code: None,
) -> list[int]:
    """Trains runs, given by their hydra overrides, in `processes` workers that share the cores.

    Returns the exit codes in order: 0, 2 for bad input, 1 for anything else. A worker in which a
    run fails unexpectedly, or that dies, is replaced. `report` receives the index and exit code of
    each run that has ended.
    """
    workers: SimpleQueue[ProcessPoolExecutor] = SimpleQueue()
    for _ in range(processes):
        workers.put(_worker(processes))

    def train(index: int, overrides: Sequence[str]) -> int:
        worker, code = workers.get(), 1
        try:
            code = worker.submit(_train, overrides).result()
        except BrokenProcessPool:
            worker.shutdown(wait=False)
            worker = _worker(processes)
        workers.put(worker)
        report(index, code)
        return code

    try:
        with ThreadPoolExecutor(processes) as threads:
            return list(threads.map(train, range(len(runs)), runs))
    finally:
        while not workers.empty():
            workers.get().shutdown()


def _worker(processes: int) -> ProcessPoolExecutor:
    """One fresh process; a worker that breaks takes only its own run with it."""
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


def _train(overrides: Sequence[str]) -> int:
    """In a worker: one run on the worker's host."""
    global _host
    try:
        _host = _host or Host()
        run(compose("train", overrides, Config, _host.ranks.size), _host)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except Exception:
        # The engine's state is unknown now: end this process, and the engine with it.
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    return 0
