"""In bfloat16, gradients of many micro-batches are added up in float32 where they are in shards."""

from pathlib import Path

import pytest

WORKER = Path(__file__).parent / "accumulation_worker.py"


@pytest.mark.parametrize("stage", [2, 3])
def test_a_sum_of_many_small_gradients_is_whole(launch, untrained, stage):
    # A sum in bfloat16 stops growing at 256 equal parts: of 768 a third would arrive.
    (ratios,) = launch(WORKER, 1, str(untrained()), str(stage), "768")
    assert len(ratios) > 10
    assert all(0.99 < ratio < 1.01 for ratio in ratios.values()), ratios
