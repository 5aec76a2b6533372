"""The promise of the README: one command, a policy that learned."""

import json
import os
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("vllm")
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_quickstart_doubles_held_out_accuracy(tmp_path):
    folder = tmp_path / "quickstart"
    subprocess.run(
        ["bash", "scripts/quickstart.sh", f"run.dir={folder}"], cwd=ROOT, check=True, env=os.environ
    )
    lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    evaluated = [line for line in lines if "eval/arithmetic/mean@32" in line]
    before, after = evaluated[0], evaluated[-1]
    assert before["step"] == 0 and after["step"] == lines[-1]["step"]
    assert 0.1 <= before["eval/arithmetic/mean@32"] <= 0.4
    assert before["eval/arithmetic/pass@32"] > before["eval/arithmetic/mean@32"] + 0.3
    assert after["eval/arithmetic/mean@32"] >= 2 * before["eval/arithmetic/mean@32"]
    assert sum(line["time/step_s"] for line in lines[1:]) < 300
    assert json.loads((folder / "run.json").read_text())["engine"] == "vllm"
    assert (folder / "plots/training.png").stat().st_size > 10_000
