"""What ranks send each other arrives, uneven parts too."""

from pathlib import Path

import pytest
import torch

from bandpo.ranks.collectives import Alone

pytest.importorskip("deepspeed")


def test_every_rank_gets_what_the_others_have_for_it(launch):
    (found,) = launch(Path(__file__).with_name("collectives_worker.py"), 3)
    assert len(found) == 6  # in the group of all, and in that of another thread
    for result in found:
        here = result["rank"]
        others = [other for other in range(3) if other != here]
        assert result["integers"] == [o + 10 * here for o in others for _ in range(2 * o + here)]
        assert result["same"] and result["nothing"] == 0 and result["device"] == "cpu"
        assert result["kinds"] == ["torch.int32", "torch.float32", "torch.int32"]
        assert result["gathered"] == ([] if here else [{"rank": rank} for rank in range(3)])


def test_a_process_alone_sends_nothing():
    alone = Alone()
    assert alone.gather_to_first(3) == [3]
    assert alone.exchange([], [0], [0], torch.float32).dtype == torch.float32
