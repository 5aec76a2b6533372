"""A machine that falls silent, its connections open, ends the run on the others."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytest.importorskip("deepspeed")
ROOT = Path(__file__).resolve().parents[2]
WORKER = """
import sys, time
import torch.distributed as dist
from bandpo.ranks import heartbeat, neighbours
from bandpo.ranks.collectives import Ranks

node = sys.argv[1]
neighbours._machine = lambda: (f"node{node}", 0)  # two launches on this machine, as on two
heartbeat.BEAT_S, heartbeat.LOST_S = 0.5, 4.0
with Ranks() as ranks, neighbours.Neighbours(ranks):
    print("READY", flush=True)
    for _ in range(int(sys.argv[2])):
        time.sleep(0.2)
        dist.barrier()
print("DONE", flush=True)
"""


@pytest.fixture
def two_machines(tmp_path):
    started = []

    def start(barriers):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            head = f"127.0.0.1:{probe.getsockname()[1]}"
        worker = tmp_path / "worker.py"
        worker.write_text(WORKER)
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "1"]
        command += ["--nnodes", "2", "--rdzv-backend", "c10d", "--rdzv-id", "test"]
        command += ["--rdzv-endpoint", head, str(worker)]
        for node in ("0", "1"):
            paths = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
            log = (tmp_path / f"node{node}").open("w")
            started.append(
                subprocess.Popen(
                    [*command, node, str(barriers)],
                    env={**os.environ, "PYTHONPATH": paths, "GLOO_SOCKET_IFNAME": "lo"},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
        return started

    yield start
    for launcher in (process for process in started if process.poll() is None):
        children = psutil.Process(launcher.pid).children(recursive=True)
        for process in [*children, launcher]:
            process.kill()
        launcher.wait()


def log_of(tmp_path, node):
    return (tmp_path / f"node{node}").read_text()


@pytest.mark.parametrize("lost", [0, 1])  # one of them holds the store
def test_a_silent_machine_ends_the_others(lost, two_machines, tmp_path):
    machines = two_machines(10_000)
    deadline = time.monotonic() + 120
    while not all("READY" in log_of(tmp_path, node) for node in range(2)):
        assert time.monotonic() < deadline, log_of(tmp_path, 0) + log_of(tmp_path, 1)
        time.sleep(0.1)
    launcher = psutil.Process(machines[lost].pid)
    for process in [launcher, *launcher.children(recursive=True)]:
        process.suspend()  # says nothing, and closes no connection
    said = f"machine node{lost} has been silent for 4 s"
    deadline = time.monotonic() + 30
    while said not in log_of(tmp_path, 1 - lost):
        assert time.monotonic() < deadline, log_of(tmp_path, 1 - lost)
        time.sleep(0.1)


def test_machines_that_finish_are_not_taken_for_lost_ones(two_machines, tmp_path):
    machines = two_machines(40)  # 8 s, twice what a machine may be silent
    assert [machine.wait(120) for machine in machines] == [0, 0], log_of(tmp_path, 0)
    assert all("DONE" in log_of(tmp_path, node) for node in range(2))
