"""Training in bfloat16 goes where training in float32 goes, whatever the ZeRO stage."""

from pathlib import Path

import pytest

WORKER = Path(__file__).parent / "bfloat16_worker.py"


@pytest.fixture(scope="module")
def found(launch, untrained):
    (result,) = launch(WORKER, 1, str(untrained()))
    return result


@pytest.mark.parametrize("stage", range(4))
def test_updates_move_the_policy_as_far_as_in_float32(found, stage):
    """A first AdamW update that is counted as the second is a quarter shorter."""
    wanted, losses = (found["losses"][f"{dtype} {stage}"] for dtype in ("float32", "bfloat16"))
    assert wanted[0] - wanted[2] > 0.2
    assert losses == pytest.approx(wanted, abs=0.005)


@pytest.mark.parametrize("stage", ["2", "3"])
def test_the_sum_of_many_small_gradients_is_whole(found, stage):
    """A sum in bfloat16 stops growing at 256 equal parts: four fifths of 320 would arrive."""
    growth = found["growth"][stage]
    assert len(growth) > 10
    assert all(0.99 < ratio < 1.01 for ratio in growth.values()), growth
