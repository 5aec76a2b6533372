"""The short form of scripts/chaos.py: killed runs end as quiet ones, and a difference is seen."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
from chaos import DISTURBANCES, SETTING_CYCLE, differences, schedule  # noqa: E402


def play(folder: Path, *arguments: str) -> str:
    """The rounds' rows, once all of them ended as the quiet run."""
    command = [sys.executable, str(ROOT / "scripts/chaos.py"), "--folder", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    logs = "".join(path.read_text()[-2000:] for path in sorted(folder.glob("*.log")))
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{logs}"
    return done.stdout


@pytest.mark.slow
def test_a_run_that_is_killed_ends_as_the_quiet_one(tmp_path):
    told = play(
        tmp_path / "runs", "--rounds", "1", "--settings", "hf", "--disturbances", "truncate"
    )
    assert "SIGKILL to all" in told and "| equal |" in told


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_disturbance_with_two_ranks_and_with_vllm(tmp_path):
    pytest.importorskip("vllm")
    told = play(tmp_path / "runs", "--rounds", "8", "--settings", "hf2", "vllm", "--seed", "1")
    assert "of 8 rounds ended as the quiet run" in told


def test_the_rounds_pair_every_setting_with_every_disturbance():
    for settings in (SETTING_CYCLE, ("hf2", "vllm"), ("hf",)):
        pairs = schedule(len(settings) * len(DISTURBANCES), settings, DISTURBANCES)
        assert {(s, d) for s in settings for d in DISTURBANCES} == set(pairs)


def finished(folder: Path) -> Path:
    """What the comparison reads of a run."""
    (folder / "checkpoints/step_000006/hf").mkdir(parents=True)
    (folder / "checkpoints/step_000006/hf/model.safetensors").write_bytes(b"weights")
    (folder / "samples").mkdir()
    (folder / "samples/step_000001.jsonl").write_text("sample")
    lines = [json.dumps({"step": step, "x": 1.0, "time/step_s": 2.0}) for step in (0, 1)]
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return folder


def test_every_difference_is_seen(tmp_path):
    quiet, other = finished(tmp_path / "quiet"), finished(tmp_path / "other")
    lines = (other / "metrics.jsonl").read_text()
    (other / "metrics.jsonl").write_text(lines.replace("2.0", "3.0"))
    assert differences(quiet, other) == []  # times alone
    (other / "metrics.jsonl").write_text(lines.splitlines(keepends=True)[0] + lines)
    assert "metrics.jsonl differs" in differences(quiet, other)[0]
    (other / "metrics.jsonl").write_text(lines)
    (other / "samples/step_000001.jsonl").unlink()
    assert differences(quiet, other) == ["samples/step_000001.jsonl is missing"]
    (other / "samples/step_000001.jsonl").write_text("sample")
    (other / "checkpoints/step_000006/hf/model.safetensors").write_bytes(b"weighty")
    assert differences(quiet, other) == ["checkpoints/step_000006/hf/model.safetensors differs"]
