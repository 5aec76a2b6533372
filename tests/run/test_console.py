"""A run outlives its console: what it leaves is complete, and its exit code is its own."""

import os
import subprocess
import sys

import pytest
from small_runs import FIXTURES, LOW_BYTES, metrics_of

SMALL = [
    *("rollout=hf", "trainer.steps=1", "rollout.prompts_per_step=2", "rollout.group_size=2"),
    *("rollout.max_tokens=4", "learner.updates_per_rollout=1", "eval.benchmarks=[]"),
    *("run.dir=run", *LOW_BYTES),
]


@pytest.mark.parametrize(
    ("redirection", "encoding"),
    [
        ("| head -1", "utf-8"),
        (">&-", "utf-8"),
        # By default test_encodings.py prints to a console of few characters.
        pytest.param(">/dev/null", "ascii", marks=pytest.mark.slow),
    ],
)
def test_a_run_ends_well_without_a_console_that_takes_all(
    redirection, encoding, untrained, tmp_path
):
    command = f'"$@" {redirection}; exit ${{PIPESTATUS[0]}}'
    train = [
        sys.executable,
        "-m",
        "bandpo.cli",
        "train",
        *SMALL,
        "policy=embedded",
        f"model.path={untrained()}",
    ]
    done = subprocess.run(
        ["bash", "-c", command, "bash", *train],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONIOENCODING": encoding,
            "PYTHONPATH": f"{FIXTURES.parents[1]}{os.pathsep}{FIXTURES}",
        },
        capture_output=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:].decode()
    assert [line["step"] for line in metrics_of(tmp_path / "run")] == [0, 1]
    for name in ("plots/timeline.png", "checkpoints/latest/hf/model.safetensors"):
        assert (tmp_path / "run" / name).stat().st_size > 0
