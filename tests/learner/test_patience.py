"""Ranks wait for the slowest of them longer than DeepSpeed would."""

from datetime import timedelta

import pytest
import torch

from bandpo.config import Config, compose
from bandpo.learner import ranks

deepspeed = pytest.importorskip("deepspeed")


@pytest.fixture
def joined(monkeypatch):
    """What the groups are made with; they are not made."""
    made = []
    monkeypatch.setattr(ranks.dist, "is_initialized", lambda: False)
    monkeypatch.setattr(
        deepspeed, "init_distributed", lambda backend, **given: made.append((backend, given))
    )
    monkeypatch.setattr(ranks.dist, "new_group", lambda **given: made.append(("apart", given)))
    return made


def test_a_server_is_given_up_before_the_other_ranks_are(joined):
    ranks._join(torch.device("cuda", 0))
    object.__new__(ranks.Ranks).apart()
    (backend, everyone), (_, apart) = joined
    assert backend == "nccl" and apart["backend"] == "gloo"
    engine = compose("train", ["rollout=vllm_server"], Config).rollout.engine
    for group in (everyone, apart):
        assert group["timeout"] > 2 * timedelta(seconds=engine["timeout_s"])
