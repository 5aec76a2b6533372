"""Threads are counted from the cores that a process may use."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bandpo import cpu as cores

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "400000 100000\n"}, 4),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_a_containers_quota(tmp_path, files, quota):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cores._quota(tmp_path) == quota


def test_a_quota_and_an_affinity_bound_the_cores(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(cores, "CONTROL_GROUP", tmp_path)
    assert cores.usable_cores() == 8
    (tmp_path / "cpu.max").write_text("250000 100000\n")
    assert cores.usable_cores() == 3


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_a_process_bound_to_one_core_starts_one_thread():
    code = (
        "import os, sys; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]);"
        "from bandpo.cli import main; main(['help']); main(['train', '--help']);"
        "print(os.environ['OMP_NUM_THREADS'], file=sys.stderr)"
    )
    environment = {name: v for name, v in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment
    )
    assert done.stderr.strip().splitlines()[-1] == "1"


def test_nothing_else_counts_the_machines_cores():
    allowed = {
        ROOT / "bandpo/cpu.py",
        ROOT / "bandpo/environment.py",
    }  # describes the machine
    users = [p for p in (ROOT / "bandpo").rglob("*.py") if "cpu_count" in p.read_text()]
    assert set(users) <= allowed
