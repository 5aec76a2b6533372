"""Sampling seeds: stable, and no two samples of an occasion share a stream on any device."""

from itertools import pairwise

import pytest
import torch

from bandpo.errors import UserError
from bandpo.rollout import seeds as module
from bandpo.rollout.seeds import Seeds


def test_they_never_change():
    # Written down: a change would make every earlier run irreproducible.
    assert Seeds(0, 1, 32).take("arithmetic-1+1") == 3414265408055583872
    assert Seeds(0, 1, 16).take("arithmetic-1+1") == 3414265408055583872


@pytest.mark.parametrize(
    ("prompts", "draws", "samples"),
    [(256, 101, 16), (20_000, 1, 32), (500, 2, 1024), (30, 1, 5000)],
)
def test_no_two_samples_of_an_occasion_share_a_stream(prompts, draws, samples):
    seeds = Seeds(3, 17, samples)
    found = [seeds.take(f"p{i}", draw) for draw in range(draws) for i in range(prompts)]
    assert all(0 <= seed < 2**63 for seed in found)
    # torch's generator on a CPU: sample i of a prompt gets (seed + i) mod 2^32.
    lower = sorted(seed % 2**32 for seed in found)
    assert all(b - a >= samples for a, b in pairwise([*lower, lower[0] + 2**32]))
    # vLLM's hash of 64 bits to 32 maps each half one to one, given the other half.
    assert len({(seed + samples - 1) >> 32 for seed in found} | {s >> 32 for s in found}) == 1


def test_all_streams_that_torch_tells_apart_are_different():
    seeds = Seeds(0, 1, 4)
    found = [seeds.take(f"p{i}") + sample for i in range(2000) for sample in range(4)]
    first = torch.stack([torch.rand(4, generator=_cpu(seed)) for seed in found])
    assert len(first.unique(dim=0)) == len(found)
    # What the test rests on: a CPU ignores the upper half of a seed.
    assert torch.equal(torch.rand(4, generator=_cpu(5)), torch.rand(4, generator=_cpu(5 + 2**40)))


def _cpu(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_each_part_matters():
    base = Seeds(0, 1, 32).take("a")
    others = [Seeds(1, 1, 32), Seeds(0, 2, 32), Seeds(0, "eval", 32)]
    found = [base, *(seeds.take("a") for seeds in others)]
    found += [Seeds(0, 1, 32).take("b"), Seeds(0, 1, 32).take("a", draw=1)]
    assert len({seed % 2**32 for seed in found}) == 6
    assert len({seed >> 32 for seed in found}) == 4


def test_they_do_not_depend_on_the_company_of_a_prompt():
    names = [f"p{i}" for i in range(1000)]
    alone = [Seeds(0, 5, 32).take(name) for name in names]
    together, backwards = Seeds(0, 5, 32), Seeds(0, 5, 32)
    assert [together.take(name) for name in names] == alone
    assert [backwards.take(name) for name in reversed(names)] == alone[::-1]


def test_where_hashes_collide_the_later_prompt_gets_another_seed(monkeypatch):
    monkeypatch.setattr(module, "_STREAMS", 2**13)  # room for 128 prompts of 64 samples
    seeds = Seeds(0, 1, 64)
    found = {seeds.take(f"p{i}") % 2**13 for i in range(64)}
    assert len(found) == 64 and all(seed % 64 == 0 for seed in found)
    with pytest.raises(UserError, match="64 prompts with up to 64 samples"):
        seeds.take("one more")
