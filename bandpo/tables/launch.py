"""Launchers run the runs that they are given; which of them finished is read from the disk."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from types import FrameType
from typing import NoReturn, Protocol

import torch

from bandpo.disk.lock import is_held, wait_until_free
from bandpo.errors import UserError
from bandpo.tables.runs import PlannedRun
from bandpo.tables.series import launch_series

LOG = "train.log"
WAKE_S = 1.0


class Launcher(Protocol):
    """Runs the runs that it is given; a recipe may name one of its own under `launcher`."""

    def __call__(self, runs: Sequence[PlannedRun]) -> None:
        """Returns when every run has ended, finished or failed."""
        ...


def train_command(run: PlannedRun, hostfile: Path | None = None) -> list[str]:
    """The process of a run: one rank, torchrun on this machine, or deepspeed over a hostfile."""
    if hostfile:
        deepspeed = ["deepspeed", "--hostfile", str(hostfile), "--module"]
        return [*deepspeed, "bandpo.cli", "train", *run.overrides]
    python, *train = one_rank(run.overrides)
    if run.ranks > 1:
        torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(run.ranks)]
        return [python, "-m", *torchrun, *train]
    return [python, *train]


def one_rank(overrides: Sequence[str]) -> list[str]:
    """`bandpo train` with these overrides as a process of one rank."""
    return [sys.executable, "-m", "bandpo.cli", "train", *overrides]


def finished_elsewhere(run: PlannedRun) -> bool:
    """Whether the run is finished, once no other process, left by a killed call, trains it."""
    if is_held(run.folder):
        print(f"{run.label}: another process is training it; waiting", flush=True)
        wait_until_free(run.folder)
    return run.is_finished()


@dataclass
class Processes:
    """A process (or, with several ranks, a launcher of processes) for each run.

    `at_once` runs are trained side by side, each on GPUs of its own. Their output goes to
    train.log in their folders.
    """

    at_once: int = 1
    hostfile: Path | None = None
    _running: list[subprocess.Popen[bytes]] = field(default_factory=list, init=False)
    _lock: Lock = field(default_factory=Lock, init=False)
    _ended: bool = field(default=False, init=False)

    def __call__(self, runs: Sequence[PlannedRun]) -> None:
        """Continues after a failure; ends its processes when it is ended itself."""
        self._require_gpus(runs)
        slots: SimpleQueue[int] = SimpleQueue()
        for slot in range(self.at_once):
            slots.put(slot)
        with signals_to(_exit, signal.SIGTERM), ThreadPoolExecutor(self.at_once) as pool:
            try:
                waiting = {
                    pool.submit(self._run, run, f"{index} of {len(runs)}", slots)
                    for index, run in enumerate(runs, 1)
                }
                while waiting:
                    # A signal that arrives just before this thread sleeps does not wake it.
                    done, waiting = wait(waiting, WAKE_S, FIRST_EXCEPTION)
                    for future in done:
                        future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                self._end()
                raise

    def _require_gpus(self, runs: Sequence[PlannedRun]) -> None:
        ranks = max((run.ranks for run in runs), default=1)
        gpus = torch.cuda.device_count()
        if ranks > 1 and not self.hostfile and gpus < ranks * self.at_once:
            raise UserError(
                f"{ranks * self.at_once} GPUs are needed here, {gpus} are found; --cluster sets "
                "the GPUs of a run, --hostfile and --slurm run it elsewhere, --plan starts nothing"
            )

    def _run(self, run: PlannedRun, number: str, slots: SimpleQueue[int]) -> None:
        slot = slots.get()
        try:
            while not finished_elsewhere(run):
                print(f"run {number}: {run.label} → {run.folder}", flush=True)
                code = self._wait(run, slot)
                if run.is_finished() or not is_held(run.folder):
                    break  # else another process took the folder first
            if not run.is_finished():
                print(f"run {number} failed with exit code {code}: {run.folder / LOG}", flush=True)
        finally:
            slots.put(slot)

    def _wait(self, run: PlannedRun, slot: int) -> int:
        run.folder.mkdir(parents=True, exist_ok=True)
        with (run.folder / LOG).open("ab") as log:
            with self._lock:  # `_end` must not miss a process that is starting
                if self._ended:
                    return -signal.SIGTERM
                process = subprocess.Popen(
                    train_command(run, self.hostfile),
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    stdin=subprocess.DEVNULL,
                    env={**os.environ, **self._gpus(run, slot)},
                )
                self._running.append(process)
            return process.wait()

    def _end(self) -> None:
        with self._lock:
            self._ended = True
            for process in self._running:
                process.terminate()

    def _gpus(self, run: PlannedRun, slot: int) -> dict[str, str]:
        if self.at_once == 1 or not torch.cuda.is_available():
            return {}
        given = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = given.split(",") if given else list(map(str, range(torch.cuda.device_count())))
        return {"CUDA_VISIBLE_DEVICES": ",".join(gpus[slot * run.ranks :][: run.ranks])}


@dataclass
class Series:
    """`processes` workers on this machine's CPU that keep their engine from one run to the next.

    The start of an engine is most of the time of a short run.
    """

    processes: int = 1

    def __call__(self, runs: Sequence[PlannedRun]) -> None:
        """Continues after a failure."""
        waiting = [run for run in runs if not finished_elsewhere(run)]

        def report(index: int, code: int) -> None:
            run = waiting[index]
            outcome = "finished" if run.is_finished() else f"failed with exit code {code}"
            print(f"{run.label}: {outcome}, {run.folder}", flush=True)

        launch_series([run.overrides for run in waiting], self.processes, report)


@contextmanager
def signals_to(
    handler: Callable[[int, FrameType | None], object], *numbers: signal.Signals
) -> Iterator[None]:
    """Sends signals of these numbers to the handler; afterwards to those that had them before."""
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


def _exit(number: int, frame: FrameType | None) -> NoReturn:
    """Ends this process as an exception does, so that its children are ended too."""
    sys.exit(128 + number)
