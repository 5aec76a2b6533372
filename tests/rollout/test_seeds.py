"""Sampling seeds: stable, spaced, and dependent on nothing but run, occasion and problem."""

from bandpo.rollout.seeds import SPACING, prompt_seed


def test_they_never_change():
    # Written down: a change would make every earlier run irreproducible.
    assert prompt_seed(0, 1, "arithmetic-1+1") == 2678753054046670848


def test_groups_of_any_two_prompts_share_no_child_seed():
    seeds = {prompt_seed(r, s, f"p{i}") for r in range(3) for s in range(20) for i in range(50)}
    assert len(seeds) == 3000
    assert all(seed % SPACING == 0 and 0 <= seed < 2**63 for seed in seeds)


def test_each_part_matters():
    base = prompt_seed(0, 1, "a")
    assert len({base, prompt_seed(1, 1, "a"), prompt_seed(0, 2, "a"), prompt_seed(0, 1, "b")}) == 4
    assert prompt_seed(0, "eval", "a") != base
