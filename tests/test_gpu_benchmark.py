"""The GPU benchmark runs from end to end on a toy model, without a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("deepspeed")

ROOT = Path(__file__).parents[2]


def test_the_tiny_run_measures_every_pass():
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks/gpu_learner.py", "--tiny"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout[done.stdout.index("{\n") :])["tiny"]
    assert found["tokens"] == sum(16 + 48 - int(36 * i / 4) for i in range(4))
    # 2 FLOPs a weight that a token meets, and attention, which is small for short sequences.
    weights = 2 * (4 * 64**2 - 2 * 64 * 32 + 3 * 64 * 128)
    assert found["forward_tflop"] * 1e12 > 2 * weights * found["tokens"]
    assert found["forward_tflop"] * 1e12 < 2 * (weights + 64 * 1000) * found["tokens"]
    shares = found["of_matmul"]
    assert len(shares) == 3 and all(share > 0 for share in shares.values())
    assert 0 < found["bounds_share"] < 1
