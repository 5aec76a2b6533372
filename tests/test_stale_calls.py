"""tests/mypy.ini, by which scripts/test.sh finds calls that no longer fit what they call."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CALLS = """
from bandpo.advantage import group_advantages
from bandpo.config.sections.learner import LoraConfig


def test_that_narrows_nothing(rewards=None):
    adapter = LoraConfig(rank=2, alpha=16)
    adapter.targets = 3
    assert group_advantages(rewards, valid=None)
    group_advantages(valid=None)  # stale
    group_advantages(rewards, None, 0.5)  # stale
    LoraConfig(ranks=2)  # stale
"""


def test_a_call_that_lacks_an_argument_or_has_one_too_many_is_found(tmp_path):
    (tmp_path / "calls.py").write_text(CALLS)
    settings = ["--config-file", "tests/mypy.ini", "--cache-dir", str(tmp_path / "cache")]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *settings, str(tmp_path / "calls.py")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    stale = [n for n, line in enumerate(CALLS.splitlines(), 1) if line.endswith("# stale")]
    found = re.findall(r"calls\.py:(\d+): error: .*\[(\S+)\]", done.stdout)
    assert found == [(str(number), "call-arg") for number in stale], done.stdout + done.stderr
