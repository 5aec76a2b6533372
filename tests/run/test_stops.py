"""Signals and the time limit end a run between two steps; a second signal ends it at once."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bandpo.run.stops import ECHO_S, Stops

ROOT = Path(__file__).resolve().parents[1]


class OneOfTwo:
    """A rank whose neighbour brings `theirs` into every maximum."""

    device = torch.device("cpu")

    def __init__(self, theirs: float = 0.0) -> None:
        self.theirs = theirs

    def max(self, tensor):
        return tensor.clamp(min=self.theirs)


def heard(stops: Stops, said: list[str], count: int = 1) -> None:
    """Waits for the listener, which is a thread."""
    deadline = time.monotonic() + 5
    while len(said) < count and time.monotonic() < deadline:
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_granted_between_steps_and_the_usual_handlers_come_back(number):
    said: list[str] = []
    usual = signal.getsignal(number)
    with Stops(OneOfTwo(), None, said.append) as stops:
        assert stops.reason() is None
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # what a launcher passes on is no second request
        heard(stops, said)
        assert stops.reason() == number.name
    assert len(said) == 1 and number.name in said[0]
    assert signal.getsignal(number) is usual


def test_all_ranks_stop_when_one_was_told_to():
    with Stops(OneOfTwo(theirs=signal.SIGTERM), None) as stops:
        assert stops.reason() == "SIGTERM"


def test_the_time_limit_counts_from_the_start_of_the_run():
    with Stops(OneOfTwo(), 1.0, started=time.time() - 3590) as stops:
        assert stops.reason() is None
    with Stops(OneOfTwo(), 1.0, started=time.time() - 3610) as stops:
        assert stops.reason() == "trainer.max_hours=1 is over"


def test_a_second_signal_ends_the_process_while_its_main_thread_is_busy():
    code = f"""
import ctypes, os, signal, threading, time, torch
from bandpo.run.stops import Stops

def twice():
    time.sleep(0.3); os.kill(os.getpid(), signal.SIGTERM)
    time.sleep({ECHO_S} + 0.3); os.kill(os.getpid(), signal.SIGTERM)

with Stops(None, None):
    threading.Thread(target=twice, daemon=True).start()
    ctypes.CDLL(None).sleep(30)  # no bytecode runs meanwhile, as in a generation
    ctypes.CDLL(None).sleep(30)
"""
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert "a second one stops at once" in done.stdout and "stopped at once" in done.stderr
    assert time.monotonic() - begun < 30
