"""Minibatches and micro-batches: nothing lost, nothing doubled, budgets kept."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from bandpo.batching import PaddedBatch, Sample, micro_batches, minibatches, totals_of

lengths = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 60)), min_size=1, max_size=40)


def samples(sizes) -> list[Sample]:
    return [
        Sample(tuple(range(1, p + 1)), tuple(range(1, c + 1)), float(i), torch.arange(c) * -0.1)
        for i, (p, c) in enumerate(sizes)
    ]


@given(lengths, st.integers(1, 300))
def test_micro_batches_partition_within_the_budget(sizes, budget):
    all_samples = samples(sizes)
    batches = micro_batches(all_samples, budget)
    assert sorted(s.advantage for b in batches for s in b) == [s.advantage for s in all_samples]
    for batch in batches:
        padded = len(batch) * max(len(s) for s in batch)
        assert padded <= budget or len(batch) == 1


@given(st.integers(1, 30), st.integers(1, 8))
def test_minibatches_keep_groups_whole_and_even(count, pieces):
    groups = [samples([(2, 2)] * 3) for _ in range(count)]
    parts = minibatches(groups, pieces, "seed")
    assert len(parts) == pieces
    assert sorted(map(id, (s for p in parts for s in p))) == sorted(
        id(s) for g in groups for s in g
    )
    where = {id(s): i for i, part in enumerate(parts) for s in part}
    assert all(len({where[id(s)] for s in group}) == 1 for group in groups)
    sizes = [len(part) // 3 for part in parts]
    assert max(sizes) - min(sizes) <= 1


def test_the_order_depends_on_the_seed_alone():
    groups = [samples([(2, i + 1)]) for i in range(12)]
    orders = [
        [[len(s) for s in part] for part in minibatches(groups, 3, seed)]
        for seed in ("0/1", "0/1", "0/2")
    ]
    assert orders[0] == orders[1] != orders[2]


@given(lengths)
def test_padding_points_at_the_state_before_each_token(sizes):
    all_samples = samples(sizes)
    batch = PaddedBatch.of(all_samples)
    assert batch.mask.sum() == totals_of(all_samples).tokens
    for row, sample in enumerate(batch.samples):
        whole = sample.prompt_ids + sample.completion_ids
        for t, target in enumerate(sample.completion_ids):
            position = int(batch.positions[row, t])
            assert whole[position + 1] == target == int(batch.targets[row, t])
        assert int(batch.attention_mask[row].sum()) == len(sample)
    rollout = batch.padded("rollout_logp")
    assert torch.equal(rollout * batch.mask, rollout)


def test_samples_of_an_older_policy_take_their_ratios_against_it():
    all_samples = samples([(3, 4), (2, 6)])
    engine = [s.rollout_logp for s in all_samples]
    logp = torch.full((2, 6), -0.7)
    fresh = PaddedBatch.of(all_samples).token_batch(logp, None, 1)
    assert torch.equal(fresh.old_logp, logp) and fresh.rollout_logp is not None
    for sample in all_samples:
        sample.take_behaviour_policy()
    stale = PaddedBatch.of(all_samples).token_batch(logp, None, 1)
    for row, values in enumerate(engine):
        assert torch.equal(stale.old_logp[row, : len(values)], values)
    assert stale.rollout_logp is None  # nothing is left to compare the old policy with


def test_a_weightless_batch_counts_nothing():
    batch = PaddedBatch.of(samples([(3, 4)]), weightless=True)
    assert batch.mask.sum() == 0 and batch.targets.shape == (1, 4)
