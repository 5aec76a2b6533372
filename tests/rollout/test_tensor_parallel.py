"""One engine over two ranks: each rank gets its own groups, and the whole of the new weights."""

from pathlib import Path

import pytest

pytest.importorskip("vllm")


def test_two_ranks_share_one_engine(untrained, launch):
    worker = Path(__file__).with_name("tensor_parallel_worker.py")
    results = launch(worker, 2, str(untrained()))
    assert len(results) == 2
    for result in results:
        assert result["before"] < 1e-4 and result["after"] < 1e-4
        assert result["stale"] > 1e-2
