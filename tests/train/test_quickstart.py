"""The promise of the README: one command, a policy that learned."""

import json
import os
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("vllm")
ROOT = Path(__file__).resolve().parents[2]


# Other roundings give other samples after a few steps, and must give the same conclusion.
@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("seed", "machine"),
    [(0, {}), (1, {"ATEN_CPU_CAPABILITY": "avx2", "OMP_NUM_THREADS": "1"})],
    ids=["this machine", "avx2 and one thread"],
)
def test_the_quickstart_learns_on_any_machine(seed, machine, tmp_path):
    folder = tmp_path / "quickstart"
    subprocess.run(
        ["bash", "scripts/quickstart.sh", f"run.dir={folder}", f"seed={seed}"],
        cwd=ROOT,
        check=True,
        env={**os.environ, **machine},
    )
    lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    evaluated = [line for line in lines if "eval/arithmetic/mean@32" in line]
    before, after = evaluated[0], evaluated[-1]
    assert before["step"] == 0 and after["step"] == lines[-1]["step"]
    assert 0.2 <= before["eval/arithmetic/mean@32"] <= 0.28
    assert before["eval/arithmetic/pass@32"] > before["eval/arithmetic/mean@32"] + 0.3
    assert after["eval/arithmetic/mean@32"] >= 0.55
    assert sum(line["time/step_s"] for line in lines[1:]) < 300
    assert json.loads((folder / "run.json").read_text())["engine"] == "vllm"
    assert (folder / "plots/training.png").stat().st_size > 10_000
