"""Micro-batches that do not fit into memory: halved on all ranks, or the setting to lower."""

from types import SimpleNamespace

import pytest
import torch

from bandpo.batching import Sample
from bandpo.errors import RunHalted
from bandpo.learner.layouts import PackedBatch
from bandpo.learner.memory import MicroBatches, OutOfMemory

SAMPLES = [Sample((1,) * 5, (index,) * 15, 0.0, torch.zeros(15)) for index in range(3)]


def micro_batches(size=1, zero_stage=0, elsewhere=False):
    """On one of `size` ranks, of which another runs out of memory where `elsewhere` is true."""
    ranks = SimpleNamespace(size=size, device="cpu", max=lambda tensor: tensor)
    ranks.met = []
    ranks.any = lambda here: ranks.met.append(here) or here or elsewhere
    return MicroBatches(100, PackedBatch, ranks, zero_stage)


def test_the_budget_halves_down_to_a_single_sample():
    batches = micro_batches()
    assert [len(batch.samples) for batch in batches.of(SAMPLES)] == [3]
    batches.halve(SAMPLES)
    assert batches.tokens == 30  # half of the 60 tokens of the largest, not of the budget
    assert [len(batch.samples) for batch in batches.of(SAMPLES)] == [1, 1, 1]
    with pytest.raises(RunHalted, match=r"a single sample of 20 tokens .*logits_chunk"):
        batches.halve(SAMPLES)


def test_a_rank_that_fits_starts_again_with_one_that_does_not():
    with pytest.raises(OutOfMemory), micro_batches(size=2, elsewhere=True).forward(last=True):
        pass
    with micro_batches(size=2).forward(last=True):
        pass


def test_ranks_meet_before_they_communicate_and_not_after_every_pass():
    for stage, wanted in {0: 1, 1: 5, 2: 5, 3: 0}.items():  # ZeRO 3 communicates in every pass
        batches = micro_batches(2, stage)
        for last in (False, False, False, False, True):
            with batches.forward(last):
                pass
            with batches.backward(last):
                pass
        assert batches._ranks.met == [False] * wanted, stage
    batches = micro_batches(2)
    for index in range(5):
        with batches.scoring(index, 5):
            pass
    assert batches._ranks.met == [False] * 2
    # One that fails goes to the others' next meeting at once.
    with pytest.raises(OutOfMemory), batches.scoring(2, 5):
        raise torch.OutOfMemoryError("injected")
    assert batches._ranks.met == [False, False, True]


@pytest.mark.parametrize(
    ("name", "size", "zero_stage", "local"),
    [
        ("scoring", 2, 2, True),
        ("scoring", 2, 3, False),
        ("forward", 2, 2, True),
        ("forward", 1, 3, True),
        ("forward", 2, 3, False),  # gathers weights
        ("backward", 2, 0, True),
        ("backward", 2, 1, False),  # reduces gradients
        ("last backward", 1, 0, True),
        ("last backward", 2, 0, False),
    ],
)
def test_only_a_pass_without_communication_can_be_started_again(name, size, zero_stage, local):
    batches = micro_batches(size, zero_stage)
    surroundings = {
        "scoring": lambda: batches.scoring(1, 3),
        "forward": lambda: batches.forward(last=False),
        "backward": lambda: batches.backward(last=False),
        "last backward": lambda: batches.backward(last=True),
    }
    with (
        pytest.raises(OutOfMemory if local else torch.OutOfMemoryError) as caught,
        surroundings[name](),
    ):
        raise torch.OutOfMemoryError("injected")
    if not local:
        assert "Start again with learner.micro_batch_tokens=50" in caught.value.__notes__[0]
