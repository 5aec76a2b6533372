"""`learner.offload` moves state to the CPU's memory and changes nothing else."""

from pathlib import Path

import pytest

WORKER = Path(__file__).parent / "offload_worker.py"


def check(found: dict[str, list[list[float]]]) -> None:
    for case, (without, with_offload) in found.items():
        assert without[0] - without[2] > 0.2, case
        tolerance = 1e-5 if case.startswith("float32") else 2e-3
        if case.endswith("between_updates"):
            tolerance = 0.0  # the same arithmetic
        assert with_offload == pytest.approx(without, abs=tolerance), case


def test_updates_are_the_same_with_state_that_rests_between_them(launch, untrained):
    (found,) = launch(WORKER, 1, str(untrained()), "states")
    assert len(found) == 4
    check(found)


@pytest.mark.slow
def test_updates_are_the_same_with_offload(launch, untrained):
    """Slow: DeepSpeed compiles its CPU optimizer the first time."""
    (found,) = launch(WORKER, 1, str(untrained()), "all")
    assert len(found) == 12
    check(found)
