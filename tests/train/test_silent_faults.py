"""Faults that raise no error by themselves, injected into real vLLM: what stops or warns a run.

docs/silent-faults.md has the table.
"""

from pathlib import Path

import pytest

pytest.importorskip("vllm")
pytest.importorskip("peft")
pytestmark = pytest.mark.slow

WORKER = Path(__file__).parent / "silent_faults_worker.py"
PROBED = (
    *("weights of another step", "stale tied head", "stale embedding", "one layer skipped"),
    *("woken without weights", "LoRA not merged"),
)
SAMPLED = ("prefix cache kept", "temperature 0.4")
HEALTHY = ("nothing", "nothing, sampled", "LoRA merged")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_fault_is_told_and_none_is_told_without_one(launch, dtype):
    (result,) = launch(WORKER, 1, dtype, dtype)
    faults = result["faults"]
    assert result["moved"] > 0.5  # so that what stays behind is another policy
    assert {name: faults[name]["said"] for name in HEALTHY} == dict.fromkeys(HEALTHY, "")
    for name in PROBED:
        assert "the weights did not arrive" in faults[name]["said"], name
        assert faults[name]["tokens"] <= 4 * 64
    for name in SAMPLED:
        assert "samples from another distribution" in faults[name]["said"], name
    # vLLM reads no cached keys and values for the probe: it is the samples that show them.
    assert faults["prefix cache kept, probed"]["said"] == ""
    stops = [name for name in SAMPLED if faults[name]["said"].startswith("RunHalted")]
    assert len(stops) == (len(SAMPLED) if dtype == "float32" else 0)
    if dtype == "float32":  # in bfloat16 rounding is as large
        assert "samples from another distribution" in faults["temperature 0.7"]["said"]


def test_an_engine_in_bfloat16_under_a_learner_in_float32_is_refused_at_once(launch):
    (result,) = launch(WORKER, 1, "float32", "bfloat16")
    assert result["faults"]["bfloat16 under float32"]["said"].startswith(
        "UserError: before any update the log-probabilities"
    )
