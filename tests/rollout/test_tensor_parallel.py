"""One engine over two ranks: each rank gets its own groups, and the whole of the new weights."""

from pathlib import Path

import pytest

from bandpo.ranks.shared_memory import SEGMENTS

pytest.importorskip("vllm")

# What vLLM calls the memory that two ranks share, in every job of a machine.
EVERYBODYS = SEGMENTS / "-tp:0-[0-1]-cpushm_0"


@pytest.fixture
def anothers():
    """The segment of another job's engine, or what one left that was killed."""
    EVERYBODYS.touch()
    yield EVERYBODYS
    EVERYBODYS.unlink(missing_ok=True)


def test_two_ranks_share_one_engine(untrained, launch, anothers):
    worker = Path(__file__).with_name("tensor_parallel_worker.py")
    results = launch(worker, 2, str(untrained()))
    assert len(results) == 2
    assert anothers.exists() and not [*SEGMENTS.glob("*cpushm-*")]
    for result in results:
        assert result["before"] < 1e-4 and result["after"] < 1e-4
        assert result["stale"] > 1e-2
