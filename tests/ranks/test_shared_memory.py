"""Of DeepSpeed's buffers only those go that nobody uses and that are of this rank's number."""

import os
import time
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import pytest

from bandpo.ranks import shared_memory
from bandpo.ranks.shared_memory import PREFIX, SETTLED_S, remove_stale_buffers

RANK = 7301  # no job has so many ranks


@pytest.fixture
def segment(monkeypatch):
    """Makes a segment as DeepSpeed's of a port and an age; the job is that of port 2."""
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "2")
    made = []

    def make(port: int, age: float, rank: int = RANK, user: int | None = None) -> Path:
        user = os.getuid() if user is None else user
        name = f"{PREFIX}_{user}_127.0.0.1_{port}_{rank}"
        memory = SharedMemory(name, create=True, size=16)
        memory.close()
        made.append(memory)
        path = shared_memory.SEGMENTS / name
        os.utime(path, (time.time() - age,) * 2)
        return path

    yield make
    for memory in made:
        if (shared_memory.SEGMENTS / memory.name).exists():
            memory.unlink()


def test_what_a_killed_run_left_is_removed(segment):
    path = segment(port=1, age=2 * SETTLED_S)
    assert remove_stale_buffers(RANK) == [path] and not path.exists()
    assert remove_stale_buffers(RANK) == []


def test_the_name_that_this_job_takes_is_removed_whatever_its_age(segment):
    path = segment(port=2, age=0)
    assert remove_stale_buffers(RANK) == [path]


def test_what_is_open_young_or_of_others_stays(segment):
    opened = segment(port=1, age=2 * SETTLED_S)
    young = segment(port=3, age=0)
    another_rank = segment(port=1, age=2 * SETTLED_S, rank=RANK + 1)
    another_user = segment(port=1, age=2 * SETTLED_S, user=os.getuid() + 1)
    with opened.open():
        assert remove_stale_buffers(RANK) == []
    for path in (opened, young, another_rank, another_user):
        assert path.exists()
