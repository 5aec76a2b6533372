"""A run outlives its console: what it leaves is complete, and its exit code is its own."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from small_runs import FIXTURES, LOW_BYTES, metrics_of

ROOT = Path(__file__).resolve().parents[2]
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


LOGGED = """
import os, sys
from pathlib import Path
from bandpo.errors import UserError, exit_at_once
from bandpo.run.console import RunLog, protect_output

protect_output()
rank, end = os.environ["RANK"], sys.argv[1]
with RunLog() as log:
    print("python", rank)
    os.write(2, f"native {rank}\\n".encode())
    if end == "early":
        raise OSError("no folder")
    if end == "refused":
        raise UserError("other settings")
    log.keep_in(Path("run"))
    os.system(f"echo child {rank}")
    print("for the user", file=log.stdout, flush=True)
    if end == "at once":
        exit_at_once("the end", 7)
    if end == "late":
        raise OSError("token=abcdefgh")
print("afterwards")
"""


def logged(folder, end="", rank="0", local="0"):
    """What a process with such an end prints, and its exit code."""
    done = subprocess.run(
        [sys.executable, "-c", LOGGED, end],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "RANK": rank, "LOCAL_RANK": local},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.stdout, done.stderr, done.returncode


def test_run_log_has_all_output_of_all_ranks_and_the_console_only_what_is_for_the_user(tmp_path):
    for rank, local in (("0", "0"), ("1", "1"), ("5", "1")):
        shown = logged(tmp_path, rank=rank, local=local)
        assert shown == ("for the user\nafterwards\n", "", 0)
    start, *lines = (tmp_path / "run/run.log").read_text().strip().splitlines()
    assert start.startswith("--- 20")
    assert lines == ["python 0", "native 0", "child 0", "python 1", "native 1", "child 1"]
    elsewhere = (tmp_path / f"run/run-{socket.gethostname()}.log").read_text()
    assert elsewhere == "python 5\nnative 5\nchild 5\n"


def test_the_last_words_of_a_run_are_on_the_console_and_in_run_log(tmp_path):
    assert logged(tmp_path, "at once") == ("for the user\n", "the end\n", 7)
    assert (tmp_path / "run/run.log").read_text().endswith("child 0\nthe end\n")
    stdout, stderr, code = logged(tmp_path, "late")
    assert stdout == "for the user\n" and "token=abcdefgh" in stderr and code == 1
    log = (tmp_path / "run/run.log").read_text()
    assert log.rstrip().endswith("OSError: token=(hidden)") and "Traceback" in log


def test_output_before_there_is_a_folder_is_lost_only_to_an_error_that_explains_itself(tmp_path):
    stdout, stderr, code = logged(tmp_path, "early")
    assert stdout == "" and code == 1
    assert stderr.startswith("python 0\nnative 0\nTraceback") and "OSError: no folder" in stderr
    assert stderr.count("Traceback") == 1
    stdout, stderr, code = logged(tmp_path, "refused")
    assert stdout == "" and "native" not in stderr and "other settings" in stderr
    assert list(tmp_path.iterdir()) == []
