"""A crash on one rank ends all, within seconds, and its cause is what one reads first."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
from chaos import Launched  # noqa: E402


def two_ranks(how: str, log: Path) -> Launched:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", str(Path(__file__).with_name("neighbour_worker.py")), how]
    paths = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    own = {"PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": ""}  # there may be one GPU, and two ranks
    job = Launched(command, log, env={**os.environ, **own})
    deadline = time.monotonic() + 120
    while log.read_text().count("READY") < 2:
        assert time.monotonic() < deadline and job.process.poll() is None, log.read_text()[-3000:]
        time.sleep(0.1)
    return job


@pytest.mark.parametrize(
    ("how", "said", "root"),
    [
        ("raise", "ValueError: the first cause", "ValueError: the first cause"),
        ("user_error", "bandpo work: mend this", "exitcode  : 2"),
        ("hang", "rank 0 ends because rank 1 died first", "SIGKILL"),
    ],
)
def test_all_ranks_end_in_seconds_with_the_first_cause_on_top(how, said, root, tmp_path):
    job = two_ranks(how, tmp_path / "log")
    try:
        assert job.wait(20) == 1
        assert job.left_after(1) == []
    finally:
        job.kill()
    own, launchers = (tmp_path / "log").read_text().split("ChildFailedError", 1)
    assert said in own and "DONE" not in own
    # A failure that only follows shows no traceback of its own; that of the launcher is its last.
    tracebacks = own.count("Traceback (most recent call last)")
    assert tracebacks == (2 if how == "raise" else 1)
    first = launchers[launchers.index("Root Cause") :]
    assert "(local_rank: 1)" in first and root in first


def test_no_rank_outlives_a_launcher_that_is_killed(tmp_path):
    job = two_ranks("wait", tmp_path / "log")
    try:
        assert len(job.alive()) >= 3
        job.process.send_signal(signal.SIGKILL)
        assert job.wait(5) == -signal.SIGKILL
        assert job.left_after(5) == []
    finally:
        job.kill()


def test_a_rank_that_has_finished_is_not_taken_for_a_dead_one(tmp_path):
    job = two_ranks("late", tmp_path / "log")
    try:
        assert job.wait(30) == 0
    finally:
        job.kill()
    assert (tmp_path / "log").read_text().count("DONE") == 2
