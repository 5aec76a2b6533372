"""`learner.offload` moves state to the CPU's memory and changes nothing else."""

from pathlib import Path

import pytest

WORKER = Path(__file__).parent / "offload_worker.py"


@pytest.mark.slow
def test_updates_are_the_same_with_offload(launch, untrained):
    """Slow: DeepSpeed compiles its CPU optimizer the first time."""
    (found,) = launch(WORKER, 1, str(untrained()))
    assert len(found) == 8
    for case, (without, with_offload) in found.items():
        assert without[0] - without[2] > 0.2, case
        tolerance = 1e-5 if case.startswith("float32") else 2e-3
        assert with_offload == pytest.approx(without, abs=tolerance), case
