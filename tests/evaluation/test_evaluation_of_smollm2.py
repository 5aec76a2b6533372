"""A real pretrained model through real vLLM and math-verify, interrupted and not."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bandpo.evaluation.samples import read_samples
from bandpo.evaluation.summary import read_summaries

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"
BENCHMARKS = {"amc23": 40, "aime24": 30, "aime25": 30}


def command(model, out):
    return [
        *(sys.executable, "-m", "bandpo.cli", "eval", f"model={model}", f"out={out}"),
        *(f"benchmarks=[{','.join(BENCHMARKS)}]", f"data.root={SHARED}"),
        *("eval.n=4", "eval.max_tokens=48", "eval.limit=3"),
    ]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared/data")
def test_from_start_to_report_and_after_a_kill(smollm2, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    output = subprocess.run(
        command(smollm2, whole), env=environment, check=True, capture_output=True, text=True
    ).stdout
    summaries = read_summaries(whole)
    assert list(summaries) == list(BENCHMARKS)
    for name, size in BENCHMARKS.items():
        assert f"only the first 3 of {size}" in output
        samples = read_samples(whole / f"{name}.jsonl")
        assert len(samples) == 12 and all(0 < s.tokens <= 48 and s.completion for s in samples)
        assert len({s.completion for s in samples}) > 9  # n samples of one seed differ
        assert all(s.status in ("correct", "wrong", "no_answer", "truncated") for s in samples)
        assert summaries[name].settings["engine"] == "vllm_local"
    assert (whole / "report.html").stat().st_size > 10_000

    process = subprocess.Popen(command(smollm2, killed), env=environment)
    while process.poll() is None and not (killed / "aime24.jsonl").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (killed / "summary.json").exists()
    subprocess.run(command(smollm2, killed), env=environment, check=True)
    assert read_summaries(killed) == summaries
