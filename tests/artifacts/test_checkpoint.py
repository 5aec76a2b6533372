"""A checkpoint is whole or it is not used: writing, checksums, choosing, keeping."""

import json
import math
import random
import threading

import numpy as np
import pytest
import torch

from bandpo.artifacts.checkpoint import find_checkpoint, keep_checkpoints, write_checkpoint
from bandpo.artifacts.random_state import (
    load_random_state,
    save_random_state,
    seed_everything,
)
from bandpo.errors import UserError
from bandpo.ranks.collectives import Ranks


class Thread(Ranks):
    """A rank of a job whose processes are threads."""

    def __init__(self, rank=0, size=1, shared=None):
        self.rank, self.size, self.device = rank, size, torch.device("cpu")
        self._meeting, self._values = shared or (threading.Barrier(1), [None])

    def gather(self, value):
        self._values[self.rank] = value
        self._meeting.wait(10)
        values = list(self._values)
        self._meeting.wait(10)
        return values


def job(size, work):
    """What `work` returns or raises on each of the ranks."""
    shared = threading.Barrier(size), [None] * size
    outcomes = [None] * size

    def run(rank):
        try:
            outcomes[rank] = work(Thread(rank, size, shared))
        except Exception as error:
            outcomes[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    return outcomes


ALONE = Thread()


def shard(ranks, text="weights"):
    def part(folder):
        (folder / "engine").mkdir(exist_ok=True)
        (folder / "engine" / f"rank{ranks.rank}.pt").write_text(f"{text} of {ranks.rank}" * 100)

    return part


def written(folder, step, ranks=ALONE, parts=None, **state):
    state = {"step": step, "scores": {}, **state}
    return write_checkpoint(folder, state, {"seed": 0}, parts or [shard(ranks)], ranks)


@pytest.fixture
def folder(tmp_path):
    """checkpoints/ of a run with those of steps 2 and 4."""
    for step in (2, 4):
        written(tmp_path / "checkpoints", step)
    return tmp_path / "checkpoints"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_is_found_with_all_that_was_written(folder):
    checkpoint, notes = find_checkpoint(folder.parent, "auto", ALONE)
    assert (checkpoint.step, notes) == (4, [])
    assert checkpoint.state() == {"step": 4, "scores": {}}
    assert checkpoint.settings() == {"seed": 0}
    assert names(folder) == ["latest", "step_000002", "step_000004"]
    assert (folder / "latest").resolve() == checkpoint.folder
    manifest = json.loads((checkpoint.folder / "manifest.json").read_text())
    assert set(manifest) == {"engine/rank0.pt", "state.json", "config.yaml"}
    assert find_checkpoint(folder.parent, "never", ALONE) == (None, [])
    named, _ = find_checkpoint(folder.parent / "another", str(folder / "step_000002"), ALONE)
    assert named.step == 2 and named.folder == (folder / "step_000002").resolve()


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def remove(path):
    path.unlink()


DAMAGE = [
    (truncate, "engine/rank0.pt", "engine/rank0.pt has 1199 bytes instead of 1200"),
    (flip, "engine/rank0.pt", "the checksum of engine/rank0.pt is wrong"),
    (remove, "engine/rank0.pt", "engine/rank0.pt is missing"),
    (flip, "state.json", "the checksum of state.json is wrong"),
    (remove, "manifest.json", "it has no readable manifest.json"),
    (truncate, "manifest.json", "it has no readable manifest.json"),
]


@pytest.mark.parametrize(
    ("damage", "file", "words"), DAMAGE, ids=[f"{d.__name__} {f}" for d, f, _ in DAMAGE]
)
def test_a_damaged_one_is_skipped_with_a_message(damage, file, words, folder):
    damage(folder / "step_000004" / file)
    for ranks in (1, 2):
        for checkpoint, notes in job(ranks, lambda r: find_checkpoint(folder.parent, "auto", r)):
            assert checkpoint.step == 2
            assert len(notes) == 1 and "step_000004" in notes[0] and words in notes[0]
    with pytest.raises(UserError, match="is not a complete checkpoint"):
        find_checkpoint(folder.parent, str(folder / "step_000004"), ALONE)


def test_what_was_left_half_written_is_no_checkpoint(folder):
    (folder / ".step_000006.partial").mkdir()
    checkpoint, notes = find_checkpoint(folder.parent, "auto", ALONE)
    assert checkpoint.step == 4 and notes == []
    written(folder, 6)
    assert names(folder) == ["latest", "step_000002", "step_000004", "step_000006"]


@pytest.mark.parametrize("failing", [0, 1])
def test_a_disk_that_refuses_one_rank_fails_the_checkpoint_on_all(failing, folder):
    def refused(ranks):
        def part(aside):
            shard(ranks)(aside)
            if ranks.rank == failing:
                raise OSError(28, "No space left on device")

        def next_part(aside):
            raise AssertionError("must not begin")

        return written(folder, 6, ranks, [part, next_part])

    before = find_checkpoint(folder.parent, "auto", ALONE)
    outcomes = job(2, refused)
    assert [type(outcome) for outcome in outcomes] == [OSError, OSError]
    assert all("No space left" in str(outcome) for outcome in outcomes)
    assert names(folder) == ["latest", "step_000002", "step_000004"]
    assert find_checkpoint(folder.parent, "auto", ALONE) == before
    # Later there is room.
    assert [c.step for c in job(2, lambda ranks: written(folder, 6, ranks))] == [6, 6]
    assert names(folder / "step_000006" / "engine") == ["rank0.pt", "rank1.pt"]


def test_the_newest_and_the_best_are_kept(tmp_path):
    scores = ((1, math.nan), (2, 0.9), (3, None), (4, 0.9), (5, 0.5), (6, 0.1))
    for step, score in scores:
        written(tmp_path, step, scores={} if score is None else {"eval/x/mean@2": score})
        keep_checkpoints(tmp_path, 2, "eval/x/mean@2")
    assert names(tmp_path) == ["best", "latest", "step_000004", "step_000005", "step_000006"]
    assert (tmp_path / "best").resolve().name == "step_000004"
    assert (tmp_path / "latest").resolve().name == "step_000006"
    assert keep_checkpoints(tmp_path, 1, "reward/mean") is None
    assert names(tmp_path) == ["latest", "step_000006"]


def test_random_states_return_from_a_checkpoint(tmp_path):
    def draws():
        return random.random(), np.random.rand(), float(np.random.randn()), torch.rand(3).tolist()

    seed_everything(7)
    draws()  # an odd number of Gaussians: NumPy keeps the second of a pair
    save_random_state(tmp_path, 3)
    expected = [draws(), draws()]
    seed_everything(8)
    assert draws() != expected[0]
    load_random_state(tmp_path, 3)
    assert [draws(), draws()] == expected
    load_random_state(tmp_path, 4)  # a rank that the checkpoint does not have
    after = draws()
    load_random_state(tmp_path, 3)
    assert [draws(), draws(), draws()] == [*expected, after]
