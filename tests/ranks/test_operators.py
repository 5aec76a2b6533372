"""DeepSpeed's CPU operator is built by one process at a time, and after one that was killed."""

import fcntl
import os
import sys
from pathlib import Path

import pytest

from bandpo.ranks import joining

torch_backend = pytest.importorskip("deepspeed.comm.torch")


def test_a_lock_that_a_killed_build_left_is_removed(tmp_path, monkeypatch):
    lock = tmp_path / "operators/deepspeed_shm_comm/lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    seen = []

    def build():
        with (tmp_path / "operators/building").open("w") as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        seen.append(lock.exists())

    monkeypatch.setattr(torch_backend, "build_shm_op", build)
    joining.build_operators(tmp_path / "operators")
    assert seen == [False]


def test_the_build_takes_the_environments_own_ninja(tmp_path, monkeypatch):
    """A system's ninja of another release would find everything out of date."""
    monkeypatch.setenv("PATH", "/elsewhere")
    seen = []
    monkeypatch.setattr(torch_backend, "build_shm_op", lambda: seen.append(os.environ["PATH"]))
    joining.build_operators(tmp_path / "operators")
    assert seen == [f"{Path(sys.executable).parent}{os.pathsep}/elsewhere"]
    assert os.environ["PATH"] == "/elsewhere"
