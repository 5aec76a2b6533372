"""One engine over two ranks: each rank gets its own groups, and the whole of the new weights."""

import re
from pathlib import Path

import pytest

pytest.importorskip("vllm")


def test_two_ranks_share_one_engine(untrained, launch):
    worker = Path(__file__).with_name("tensor_parallel_worker.py")
    results = launch(worker, 2, str(untrained()))
    assert len(results) == 2
    # Memory that no engine of another job can open, and that goes with these processes.
    first, second = (result["shared"] for result in results)
    assert first == second and len(first) == 2
    for segment in first:
        assert re.search(r"cpushm-[0-9a-f]{32}_[01] \(deleted\)$", segment), segment
    for result in results:
        assert result["before"] < 1e-4 and result["after"] < 1e-4
        assert result["stale"] > 1e-2
