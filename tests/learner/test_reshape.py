"""Checkpoints go on with another number of ranks; a rank whose disk is full holds up none."""

from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

WORKER = Path(__file__).parent / "reshape_worker.py"
STAGES = ("0", "1", "2", "3")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Where checkpoints lie."""
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def undisturbed(launch, untrained, root):
    """By number of ranks: what those saw that saved a checkpoint below `root` and went on."""
    return cache(lambda ranks: launch(WORKER, ranks, str(untrained()), str(root), "0")[0])


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_the_losses_go_on_with_another_number_of_ranks(
    launch, untrained, root, undisturbed, before, after
):
    expected = undisturbed(before)
    resumed = launch(WORKER, after, str(untrained()), str(root), str(before))[0]
    for stage in STAGES:
        losses = resumed[stage]["losses"]
        assert losses == pytest.approx(expected[stage]["losses"], rel=2e-5), stage
        # The optimizer's moments and the warm-up are there too: each update moves the loss.
        assert min(abs(a - b) for a, b in pairwise(losses)) > 1e-3, stage
    assert not list(root.glob(".*universal"))


def test_a_rank_that_cannot_write_tells_the_others_and_holds_none_up(undisturbed):
    found = undisturbed(2)
    # Without ZeRO the second rank has nothing to write.
    assert found["0"]["refused"] is None
    for stage in ("1", "2", "3"):
        assert "File too large" in found[stage]["refused"]
        assert len(found[stage]["losses"]) == 3  # and the run went on
