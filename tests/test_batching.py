"""Minibatches and micro-batches: nothing lost, nothing doubled, budgets kept."""

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bandpo.batching import (
    Sample,
    balanced,
    minibatches,
    samples_of,
    schedule,
    sequence_cost,
    totals_of,
)
from bandpo.learner.layouts import (
    PackedBatch,
    PaddedBatch,
    SharedPromptBatch,
    micro_batches,
    split_to,
)
from bandpo.loss import (
    Clip,
    EntropyRadius,
    Fixed,
    LossDiagnostics,
    PolicyLoss,
    TokenMean,
    TokenRatio,
)
from bandpo.types import Completion, Group, Problem, Prompt

LAYOUTS = [PaddedBatch, PackedBatch, SharedPromptBatch]
lengths = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 60)), min_size=1, max_size=40)


def samples(sizes) -> list[Sample]:
    return [
        Sample(tuple(range(1, p + 1)), tuple(range(1, c + 1)), float(i), torch.arange(c) * -0.1)
        for i, (p, c) in enumerate(sizes)
    ]


def sequence(sample):
    return (*sample.prompt_ids, *sample.completion_ids.tolist())


def everything(batches):
    return sorted(sample.advantage for batch in batches for sample in batch)


@given(lengths, st.integers(1, 300), st.sampled_from(LAYOUTS))
def test_micro_batches_partition_within_the_budget(sizes, budget, layout):
    all_samples = samples(sizes)
    batches = micro_batches(all_samples, budget, layout)
    assert everything(batches) == [s.advantage for s in all_samples]
    for batch in batches:
        computed = layout.of(batch).rows.input_ids.numel()
        if layout is SharedPromptBatch:
            repeated = sum(map(len, batch)) - computed
            assert layout.size(batch) == computed + -(-repeated // 4)
        else:
            assert layout.size(batch) == computed
        assert layout.size(batch) <= budget or len(batch) == 1


@given(lengths, st.integers(1, 300), st.integers(0, 30))
def test_splitting_reaches_the_number_of_the_busiest_rank(sizes, budget, more):
    all_samples = samples(sizes)
    batches = micro_batches(all_samples, budget, PackedBatch)
    wanted = len(batches) + more
    split = split_to(batches, wanted)
    assert everything(split) == [s.advantage for s in all_samples]
    assert len(split) == min(wanted, max(len(all_samples), len(batches)))
    assert all(split)


@given(lengths, st.integers(1, 6))
def test_balancing_leaves_no_rank_far_from_the_mean(sizes, ranks):
    costs = [sequence_cost(p + 10 * c, 64) for p, c in sizes]
    parts = balanced(costs, ranks)
    assert sorted(i for part in parts for i in part) == list(range(len(costs)))
    loads = [sum(costs[i] for i in part) for part in parts]
    assert max(loads) <= sum(costs) / ranks + max(costs) * (1 - 1 / ranks) + 1e-6
    assert (min(loads) > 0) == (len(costs) >= ranks)


def test_the_cost_of_a_sequence_is_that_of_its_matrices_and_its_attention():
    hidden, length = 64, 1000
    matrices = 24 * hidden**2 * length
    attention = 2 * hidden * length**2  # causal: half of 4·hidden·length²
    assert sequence_cost(length, hidden) == pytest.approx((matrices + attention) / 24 / hidden**2)


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


def group(id: str, sizes) -> Group:
    completions = [Completion("", tuple(range(n)), (-1.0,) * n, "stop") for n in sizes]
    return Group(Prompt(Problem(id, "?", "1"), "?", (1, 2)), tuple(completions))


@given(
    st.lists(st.lists(st.integers(1, 60), min_size=3, max_size=3), max_size=8),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 4),
)
def test_a_schedule_is_that_of_one_rank_whatever_their_number(sizes, updates, epochs, ranks):
    groups = [group(f"p{i}", lengths) for i, lengths in enumerate(sizes)]
    advantages = [[10.0 * i + j for j in range(3)] for i in range(len(groups))]

    @cache
    def sample(i, j):
        return Sample.of(groups[i], j, advantages[i][j])

    def scheduled(rank=0, ranks=1):
        settings = {"updates": updates, "epochs": epochs, "seed": "0/1"}
        wholes = [[group.length(j) for j in range(3)] for group in groups]
        shares = schedule(wholes, float, **settings, ranks=ranks)
        return [[sample(*place) for place in minibatch[rank]] for minibatch in shares]

    alone = scheduled()
    assert len(alone) == updates * epochs
    whole = sorted(
        (s.id, s.advantage)
        for g, a in zip(groups, advantages, strict=True)
        for s in samples_of(g, a)
    )
    for epoch in range(epochs):
        batches = alone[epoch * updates : (epoch + 1) * updates]
        assert sorted((s.id, s.advantage) for batch in batches for s in batch) == whole
    # An update sees the samples as the ones before have filled them in.
    assert len({id(s) for batch in alone for s in batch}) == len(whole)
    shares = [scheduled(rank, ranks) for rank in range(ranks)]
    for number, batch in enumerate(alone):
        together = [s for share in shares for s in share[number]]
        assert sorted(s.id for s in together) == sorted(s.id for s in batch)
        costs = [sum(map(len, share[number])) for share in shares]
        assert max(costs) - min(costs) <= max(map(len, batch), default=0)


def test_every_epoch_has_an_order_of_its_own():
    first, second = (
        places for (places,) in schedule([[1]] * 12, float, updates=1, epochs=2, seed="0/1")
    )
    assert sorted(first) == sorted(second) and first != second


@given(lengths, st.sampled_from([PaddedBatch, PackedBatch]))
def test_states_stand_before_each_token_in_its_own_sequence(sizes, layout):
    all_samples = samples(sizes)
    batch = layout.of(all_samples)
    assert batch.mask.sum() == totals_of(all_samples).tokens
    ids = batch.rows.input_ids.flatten()
    scored = iter(
        zip(batch.rows.states.tolist(), batch.targets.tolist(), batch.slots.tolist(), strict=True)
    )
    for row, sample in enumerate(batch.samples):
        for t, target in enumerate(sample.completion_ids):
            state, chosen, slot = next(scored)
            before = sequence(sample)[: len(sample.prompt_ids) + t]
            assert tuple(ids[state + 1 - len(before) : state + 1].tolist()) == before
            assert chosen == target and slot == row * batch.mask.shape[1] + t
    assert next(scored, None) is None
    rollout = batch.values["rollout_logp"]
    assert torch.equal(rollout * batch.mask, rollout)
    for row, sample in enumerate(batch.samples):
        assert torch.equal(rollout[row, : len(sample.completion_ids)], sample.rollout_logp)


@given(lengths)
def test_a_shared_row_holds_every_prompt_once_and_every_sequence_can_be_read_from_it(sizes):
    ordered = SharedPromptBatch.ordered(samples(sizes))
    batch = SharedPromptBatch.of(ordered)
    rows = batch.rows
    row = rows.input_ids[0]
    prompts = {sample.prompt_ids for sample in ordered}  # those of one length are the same
    assert len(row) == sum(map(len, prompts)) + totals_of(ordered).tokens
    places = rows.gather.split(rows.lengths)
    assert list(rows.lengths) == sorted(map(len, ordered), reverse=True)
    assert sorted(tuple(row[place].tolist()) for place in places) == sorted(map(sequence, ordered))
    _, first = np.unique(rows.gather.numpy(), return_index=True)
    assert rows.back.tolist() == first.tolist()
    positions = torch.cat([torch.arange(length) for length in rows.lengths])
    assert rows.positions[0].tolist() == positions[first].tolist()
    states = iter(rows.states.split([len(sample.completion_ids) for sample in ordered]))
    for sample in ordered:
        begin, before = len(sample.prompt_ids) - 1, next(states).tolist()
        assert any(
            len(place) == len(sample) and place[begin:-1].tolist() == before for place in places
        )
        assert row[before].tolist() == list(sequence(sample))[begin:-1]


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


def test_the_entropy_of_an_older_policy_is_not_that_of_the_new_one():
    logp, entropy = torch.full((2, 6), -0.7), torch.full((2, 6), 1.3)
    on_policy = PaddedBatch.of(samples([(3, 4), (2, 6)])).token_batch(logp, entropy, 1)
    assert torch.equal(on_policy.entropy, entropy)
    older = samples([(3, 4), (2, 6)])
    for sample in older:
        sample.take_behaviour_policy()
    batch = PaddedBatch.of(older).token_batch(logp, entropy, 1)
    assert batch.entropy is None and torch.equal(batch.new_entropy, entropy)
    with pytest.raises(ValueError, match="the old policy's entropy"):
        EntropyRadius(0.01, 0.1)(batch)
    loss = PolicyLoss(TokenRatio(), Clip(Fixed(0.2, 0.2)), TokenMean())
    diagnostics = LossDiagnostics()
    diagnostics.update(loss(batch))
    assert diagnostics.metrics()["policy/entropy"] == pytest.approx(1.3)
    # What the learner has scored itself has its own.
    for sample in older:
        sample.old_logp, sample.entropy = sample.old_logp + 0.1, torch.zeros_like(sample.old_logp)
    assert (PaddedBatch.of(older).token_batch(logp, entropy, 1).entropy == 0).all()


def test_a_weightless_batch_counts_nothing():
    batch = PaddedBatch.of(samples([(3, 4)]), weightless=True)
    assert batch.mask.sum() == 0 and batch.mask.shape == (1, 4) and len(batch.targets) == 4


@pytest.mark.parametrize("layout", LAYOUTS)
def test_cutting_micro_batches_takes_time_in_proportion_to_the_samples(layout):
    class Counted(Sample):
        asked = 0

        def __len__(self):
            Counted.asked += 1
            return super().__len__()

    def asked(count: int) -> int:
        Counted.asked = 0
        few = [Counted((index // 8,), (1,), 0.0, None) for index in range(count)]
        assert len(micro_batches(few, 2 * count, layout)) == 1
        return Counted.asked

    assert asked(1000) > 0
    assert asked(4000) <= 4 * asked(1000)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_tokens_may_be_tuples_arrays_or_tensors(layout, kind):
    sizes = [(3, 4), (2, 6), (3, 0), (3, 5), (2, 1)]
    tuples, others = samples(sizes), samples(sizes)
    dtype = torch.int32 if kind is torch.tensor else np.int32
    for sample in others:
        sample.completion_ids = kind(sample.completion_ids, dtype=dtype)
    for wanted, found in zip(
        micro_batches(tuples, 20, layout), micro_batches(others, 20, layout), strict=True
    ):
        assert [s.advantage for s in found] == [s.advantage for s in wanted]
        a, b = layout.of(wanted), layout.of(found)
        assert layout.size(found) == layout.size(wanted)
        for mine, other in zip(a.arguments, b.arguments, strict=True):
            assert torch.equal(mine, other) if isinstance(mine, torch.Tensor) else mine == other
        assert all(t.dtype == torch.int64 for t in (b.rows.input_ids, b.targets, b.slots))
