"""`bandpo eval` on two ranks: what one rank gives, also after a crash that ended both."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
from chaos import Launched  # noqa: E402

WHAT = ["benchmarks=[arithmetic]", "eval.limit=8", "eval.n=8", "eval.max_tokens=96", "rollout=hf"]
# A problem at a time, so that there is something to kill in between.
SLOWLY = "rollout.engine.cache_gib=1e-6"


@pytest.fixture
def start(untrained, tmp_path):
    """Starts an evaluation on so many ranks, with no launcher to look after them."""
    jobs = []

    def run(out: str, ranks: int) -> list[Launched]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "bandpo.cli", "eval", *WHAT, SLOWLY]
        command += [f"model={untrained()}", f"out={tmp_path / out}"]
        job = {"WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for rank in range(ranks):
            told = job | {"RANK": rank, "LOCAL_RANK": rank} if ranks > 1 else {}
            environment = {**os.environ, **{key: str(value) for key, value in told.items()}}
            jobs.append(Launched(command, tmp_path / f"{out}{rank}.log", env=environment))
        return jobs[-ranks:]

    yield run
    for job in jobs:
        job.kill()


def test_a_crash_ends_both_ranks_and_nothing_is_lost(start, tmp_path):
    first, second = start("two", ranks=2)
    deadline = time.monotonic() + 120
    while not all(lines_in(tmp_path / "two", name) for name in ("arithmetic", "arithmetic.rank1")):
        assert time.monotonic() < deadline and first.process.poll() is None, first.log.read_text()
        time.sleep(0.05)
    second.process.send_signal(signal.SIGKILL)
    assert first.wait(30) == 1
    assert "rank 0 ends because rank 1 died first" in first.log.read_text()
    written = lines_in(tmp_path / "two", "arithmetic")
    assert 0 < written < 8 * 8

    for job in (*start("two", ranks=2), *start("one", ranks=1)):
        assert job.wait(120) == 0, job.log.read_text()
    assert found(tmp_path / "two") == found(tmp_path / "one")


@pytest.mark.parametrize("engine", ["hf", pytest.param("vllm_local", marks=pytest.mark.slow)])
def test_one_command_evaluates_on_all_ranks_and_resumes_on_others(engine, untrained, tmp_path):
    """What one process began, launch.sh ends on two ranks, and the reverse, with equal numbers."""
    what = [*WHAT[:-1], f"rollout={engine}", f"model={untrained()}"]
    launched = ["bash", str(ROOT / "scripts/launch.sh"), "--nproc", "2", "eval", *what]
    alone = [sys.executable, "-m", "bandpo.cli", "eval", *what]
    venv = {"BANDPO_VENV": str(Path(sys.executable).parents[1])}

    def started(command: list[str], out: str) -> str:
        done = subprocess.run(
            [*command, f"out={tmp_path / out}"],
            env={**os.environ, **venv},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout

    def interrupt(out: str) -> None:
        path = tmp_path / out / "arithmetic.jsonl"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[: 3 * 8]))
        (tmp_path / out / "summary.json").unlink()

    started(alone, "one")
    shutil.copytree(tmp_path / "one", tmp_path / "both")
    for command in (launched, alone):  # begun by one and by two, ended by two and by one
        interrupt("both")
        assert started(command, "both").count("mean@8") == 1  # one table
        assert found(tmp_path / "both") == found(tmp_path / "one")


def lines_in(folder: Path, name: str) -> int:
    """Samples so far."""
    path = folder / f"{name}.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def found(folder: Path) -> tuple[dict, list]:
    """An evaluation's summary, and its samples in order."""
    (samples,) = folder.glob("*.jsonl")
    rows = list(map(json.loads, samples.open()))
    assert len(rows) == 8 * 8
    rows.sort(key=lambda row: (row["problem_id"], row["sample"]))
    return json.loads((folder / "summary.json").read_text()), rows
