"""Many runs on few engines: worker processes train one run after another and keep their engine."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from threading import Lock

from bandpo.config import Config, compose
from bandpo.errors import UserError
from bandpo.host import Host
from bandpo.train import run

_host: Host | None = None


def launch_series(
    runs: Sequence[Sequence[str]],
    processes: int = 1,
    report: Callable[[Sequence[str], int], None] = lambda overrides, code: None,
) -> list[int]:
    """Trains every run (its hydra overrides) in `processes` workers that share the cores.

    Returns the exit codes in order: 0, 2 for bad input, 1 for anything else. A worker in which a
    run fails unexpectedly, or that dies, is replaced, and the next run has a fresh one. `report`
    hears of each run that ended.
    """
    codes = [1] * len(runs)
    waiting = iter(enumerate(runs))
    turn = Lock()

    def take() -> Iterator[tuple[int, Sequence[str]]]:
        while True:
            with turn:
                item = next(waiting, None)
            if item is None:
                return
            yield item

    def work() -> None:
        pool = _worker(processes)
        try:
            for index, overrides in take():
                try:
                    codes[index] = pool.submit(_train, list(overrides)).result()
                except BrokenProcessPool:
                    pool.shutdown(wait=False)
                    pool = _worker(processes)
                report(overrides, codes[index])
        finally:
            pool.shutdown(wait=True)

    with ThreadPoolExecutor(processes) as threads:
        for future in [threads.submit(work) for _ in range(processes)]:
            future.result()
    return codes


def _worker(processes: int) -> ProcessPoolExecutor:
    """One fresh process; a worker that breaks takes only its own run with it."""
    share = max(1, (os.cpu_count() or 1) // processes)
    return ProcessPoolExecutor(
        1, mp_context=get_context("spawn"), initializer=partial(_take_threads, share)
    )


def _take_threads(threads: int) -> None:
    """vLLM and torch read it when they first start threads, which is after this."""
    import torch

    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)


def _train(overrides: list[str]) -> int:
    """In a worker: one run on the worker's host."""
    global _host
    try:
        config = compose("train", overrides, Config)
        _host = _host or Host()
        run(config, _host)
    except UserError as error:
        print(f"bandpo train {' '.join(overrides)}: {error}", file=sys.stderr)
        return 2
    except Exception:
        # What the engine holds is not known any more: end this process, and the engine with it.
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    return 0
