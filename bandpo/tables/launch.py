"""Launchers: given planned runs, see that they are run; what finished is read from the disk."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from typing import Any, Protocol

import torch

from bandpo.disk.lock import is_held, wait_until_free
from bandpo.errors import UserError
from bandpo.tables.runs import PlannedRun
from bandpo.tables.series import Training, launch_series

LOG = "train.log"


class Launcher(Protocol):
    """Runs what it is given; a recipe may name one of its own under `launcher`."""

    def __call__(self, runs: Sequence[PlannedRun]) -> None:
        """Returns when every run has ended, well or not."""
        ...


def train_command(run: PlannedRun, hostfile: Path | None = None) -> list[str]:
    """The process of a run: one rank, torchrun on this machine, or deepspeed over a hostfile."""
    arguments = ["train", *run.overrides]
    if hostfile:
        deepspeed = ["deepspeed", "--hostfile", str(hostfile), "--module"]
        return [*deepspeed, "bandpo.cli", *arguments]
    if run.ranks > 1:
        torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(run.ranks)]
        return [sys.executable, "-m", *torchrun, "-m", "bandpo.cli", *arguments]
    return [sys.executable, "-m", "bandpo.cli", *arguments]


def finished_elsewhere(run: PlannedRun) -> bool:
    """Waits for a process that is at the run, left over from a call that was killed, say."""
    if is_held(run.folder):
        print(f"{run.label}: another process is at it; waiting", flush=True)
        wait_until_free(run.folder)
    return run.is_finished()


@dataclass
class Processes:
    """A process (or, with several ranks, a launcher of processes) for each run.

    `at_once` runs go side by side, each on cards of its own. What a run prints goes to train.log
    in its folder.
    """

    at_once: int = 1
    hostfile: Path | None = None
    _running: list[subprocess.Popen[bytes]] = field(default_factory=list, init=False)
    _lock: Lock = field(default_factory=Lock, init=False)
    _ended: bool = field(default=False, init=False)

    def __call__(self, runs: Sequence[PlannedRun]) -> None:
        """Goes on after a failure; ends its processes when it is ended itself."""
        self._check_cards(runs)
        slots: SimpleQueue[int] = SimpleQueue()
        for slot in range(self.at_once):
            slots.put(slot)
        with _ended_by_signals(), ThreadPoolExecutor(self.at_once) as pool:
            futures = [
                pool.submit(self._run, run, f"{index} of {len(runs)}", slots)
                for index, run in enumerate(runs, 1)
            ]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                self._end()
                raise

    def _check_cards(self, runs: Sequence[PlannedRun]) -> None:
        ranks = max((run.ranks for run in runs), default=1)
        cards = torch.cuda.device_count()
        if ranks > 1 and not self.hostfile and cards < ranks * self.at_once:
            raise UserError(
                f"{ranks * self.at_once} GPUs are needed here, {cards} are found; --cluster says "
                "how many a run takes, --hostfile and --slurm run it elsewhere, --plan only looks"
            )

    def _run(self, run: PlannedRun, number: str, slots: SimpleQueue[int]) -> None:
        slot = slots.get()
        try:
            while not finished_elsewhere(run):
                print(f"run {number}: {run.label} → {run.folder}", flush=True)
                code = self._wait(run, slot)
                if run.is_finished() or not is_held(run.folder):
                    break  # else another process took the folder while ours was starting
            if not run.is_finished():
                print(f"run {number} failed with exit code {code}: {run.folder / LOG}", flush=True)
        finally:
            slots.put(slot)

    def _wait(self, run: PlannedRun, slot: int) -> int:
        run.folder.mkdir(parents=True, exist_ok=True)
        with (run.folder / LOG).open("ab") as log:
            with self._lock:  # so that what is being started is not overlooked by `_end`
                if self._ended:
                    return -signal.SIGTERM
                process = subprocess.Popen(
                    train_command(run, self.hostfile),
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    stdin=subprocess.DEVNULL,
                    env={**os.environ, **self._cards(run, slot)},
                )
                self._running.append(process)
            return process.wait()

    def _end(self) -> None:
        with self._lock:
            self._ended = True
            for process in self._running:
                process.terminate()

    def _cards(self, run: PlannedRun, slot: int) -> dict[str, str]:
        if self.at_once == 1 or not torch.cuda.is_available():
            return {}
        given = os.environ.get("CUDA_VISIBLE_DEVICES")
        cards = given.split(",") if given else list(map(str, range(torch.cuda.device_count())))
        return {"CUDA_VISIBLE_DEVICES": ",".join(cards[slot * run.ranks :][: run.ranks])}


@dataclass
class Series:
    """`processes` workers on this machine's CPU that keep their engine from one run to the next.

    It saves the start of an engine for every run, which is most of the time of a short one.
    """

    processes: int = 1

    def __call__(self, runs: Sequence[PlannedRun]) -> None:
        """Goes on after a failure."""
        left = [run for run in runs if not finished_elsewhere(run)]

        def report(index: int, code: int) -> None:
            run = left[index]
            outcome = "finished" if run.is_finished() else f"failed with exit code {code}"
            print(f"{run.label}: {outcome}, {run.folder}", flush=True)

        launch_series([Training(run.overrides) for run in left], self.processes, report)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM ends this process as an exception, so that what it started is ended too."""

    def stop(number: int, frame: Any) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# --------------------------------------------------------------------------- SLURM

_ARRAY = """\
#!/bin/bash
# Runs line by line what commands.txt holds, a task a run: sbatch {name}
#SBATCH --job-name={job}
#SBATCH --array=0-{last}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node={cards}
#SBATCH --time={hours}:00:00
#SBATCH --output={folder}/slurm-%A_%a.log
#SBATCH --requeue
set -euo pipefail
cd {workdir}
mapfile -t commands < {commands}
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export RENDEZVOUS="$head:$((29500 + SLURM_ARRAY_TASK_ID % 1000))" RENDEZVOUS_ID="$SLURM_JOB_ID"
srun ${{SLURM_CPUS_PER_TASK:+--cpus-per-task=$SLURM_CPUS_PER_TASK}} \\
  bash -c "${{commands[$SLURM_ARRAY_TASK_ID]}}"
"""
SLACK = 1.5  # of the estimated hours; a run that is cut off goes on from its checkpoint


def write_slurm(
    folder: Path, name: str, runs: Sequence[PlannedRun], cards_a_node: int, hours: float
) -> list[Path]:
    """`commands.txt`, a torchrun command a run, and `<name>.sbatch`, the job array over them.

    `hours` is the estimate for the longest run. What is finished is left out by not being given;
    a job that runs out of time is continued by submitting again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ranks = runs[0].ranks
    nodes = -(-ranks // cards_a_node)
    a_node = min(ranks, cards_a_node)
    launcher = (
        f"{shlex.quote(sys.executable)} -m torch.distributed.run --nnodes {nodes} "
        f"--nproc-per-node {a_node} --rdzv-backend c10d "
        '--rdzv-endpoint "$RENDEZVOUS" --rdzv-id "$RENDEZVOUS_ID" -m bandpo.cli train'
    )
    commands = folder / "commands.txt"
    lines = [f"{launcher} {shlex.join(run.overrides)}\n" for run in runs]
    commands.write_text("".join(lines), encoding="utf-8")
    script = folder / f"{name}.sbatch"
    script.write_text(
        _ARRAY.format(
            name=script.name,
            job=f"bandpo-{name}",
            last=len(runs) - 1,
            nodes=nodes,
            cards=a_node,
            hours=max(1, round(hours * SLACK + 0.5)),
            folder=folder.absolute(),
            workdir=shlex.quote(str(Path.cwd())),
            commands=shlex.quote(str(commands.absolute())),
        ),
        encoding="utf-8",
    )
    return [commands, script]
