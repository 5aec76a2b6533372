"""Each sample goes to the rank that trains on it: the batches of one rank, and no more bytes."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from thread_ranks import ThreadRanks, on_threads

from bandpo.batching import schedule
from bandpo.config.sections.rollout import RolloutConfig
from bandpo.errors import UserError
from bandpo.reward import Score
from bandpo.rollout.draws import Draws
from bandpo.rollout.exchange import samples_of_rank
from bandpo.rollout.scoring import ScoredGroup
from bandpo.types import Completion, Group, Problem, Prompt

SAMPLES = 4


def scored(index: int, lengths) -> ScoredGroup:
    rng = np.random.default_rng(index)
    completions = [
        Completion(
            f"text of {index}/{j}",
            rng.integers(0, 150_000, length),
            -rng.random(length, np.float32),
            "stop",
            weight_version=j,
        )
        for j, length in enumerate(lengths)
    ]
    prompt = Prompt(Problem(f"p{index}", "?", "1"), "?", tuple(range(index % 5 + 1)), seed=index)
    scores = [Score(float(j), "correct", f"{index}/{j}", 0.0) for j in range(len(lengths))]
    return ScoredGroup(Group(prompt, tuple(completions)), tuple(scores))


def batches(ranks, groups, updates=2, epochs=1):
    """A step from a rank's own groups to its samples, and the bytes of the rollout's summaries."""
    settings = RolloutConfig(engine={}, prompts_per_step=len(groups), max_tokens=1)
    draws = Draws(settings, None, None, ranks)
    draws.add(ranks.share(groups))
    summaries, rollout = ranks.received, draws.rollout()
    lengths = [[len(g.prompt.token_ids) + n for n in g.lengths] for g in rollout.groups]
    shares = schedule(lengths, float, updates=updates, epochs=epochs, seed="1/1", ranks=ranks.size)
    advantages = [[10.0 * i + j for j in range(SAMPLES)] for i in range(len(groups))]
    return samples_of_rank(rollout.groups, advantages, shares, ranks), shares, rollout, summaries


def values(sample):
    """Everything in a sample, exactly."""
    return (
        *(sample.id, sample.prompt_ids, sample.completion_ids.tolist(), sample.advantage),
        *(sample.rollout_logp.tolist(), sample.rollout_logp.dtype, sample.weight_version),
    )


@settings(max_examples=25)
@given(
    st.lists(
        st.lists(st.integers(0, 30), min_size=SAMPLES, max_size=SAMPLES), min_size=1, max_size=9
    ),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from([2, 3, 5]),
)
def test_the_batches_are_those_of_one_rank(sizes, updates, epochs, size):
    groups = [scored(i, lengths) for i, lengths in enumerate(sizes)]
    alone, *_ = batches(ThreadRanks(), groups, updates, epochs)
    found = on_threads(size, lambda ranks: batches(ranks, groups, updates, epochs))
    for number, whole in enumerate(alone):
        together = [sample for mine, *_ in found for sample in mine[number]]
        assert sorted(map(values, together), key=str) == sorted(map(values, whole), key=str)
    for rank, (mine, shares, *_) in enumerate(found):
        # In the order of the schedule, and a sample of several epochs is one object.
        names = [[f"p{i}/{j}" for i, j in minibatch[rank]] for minibatch in shares]
        assert [[sample.id for sample in batch] for batch in mine] == names
        distinct = {sample.id for batch in mine for sample in batch}
        assert len({id(sample) for batch in mine for sample in batch}) == len(distinct)


@pytest.mark.parametrize("size", [2, 4, 8])
def test_no_rank_ever_holds_all_tokens(size):
    rng = random.Random(0)
    groups = [scored(i, [rng.randint(500, 1500) for _ in range(SAMPLES)]) for i in range(32)]
    total = sum(len(c.token_ids) for item in groups for c in item.group.completions)

    def step(ranks):
        mine, *_, rollout, summaries = batches(ranks, groups)
        trained = sum(len(s.completion_ids) for batch in mine for s in batch)
        held = [item.here for item in rollout.groups if item.here]
        own = sum(len(c.token_ids) for item in held for c in item.group.completions)
        return trained, own, summaries, ranks.received - summaries

    for trained, own, summaries, tokens in on_threads(size, step):
        assert 0.7 < size * trained / total < 1.3 and 0.7 < size * own / total < 1.3
        # Of the others it knows lengths and scores, and gets the tokens that it trains on.
        assert summaries < 0.05 * 8 * total
        assert tokens <= 8 * trained
        assert tokens >= 0.5 * 8 * trained * (size - 1) / size
    # Every token with its log-probability is at one rank when it is trained on.
    assert sum(trained for trained, *_ in on_threads(size, step)) == total


def test_what_stays_is_not_copied():
    groups = [scored(i, [3, 5, 2, 4]) for i in range(3)]
    (batch,), *_ = batches(ThreadRanks(), groups, updates=1)
    by_id = {sample.id: sample for sample in batch}
    for item in groups:
        for j, completion in enumerate(item.group.completions):
            sample = by_id[f"{item.group.problem.id}/{j}"]
            assert sample.completion_ids is completion.token_ids
            assert sample.rollout_logp.data_ptr() == completion.logprobs.ctypes.data


def test_every_bit_of_a_log_probability_arrives():
    odd = np.array([-0.0, 1e-45, np.nan, -np.inf], np.float32)
    prompt = Prompt(Problem("p0", "?", "1"), "?", (1,))
    completions = tuple(Completion("", (1, 2, 3, 4), odd, "stop") for _ in range(SAMPLES))
    group = ScoredGroup(Group(prompt, completions), (Score(0.0, "wrong", None, 0.0),) * SAMPLES)
    for (batch,), *_ in on_threads(2, lambda ranks: batches(ranks, [group], updates=1)):
        for sample in batch:
            assert sample.rollout_logp.numpy().tobytes() == odd.tobytes()


def test_tokens_without_log_probabilities_are_an_error_that_names_the_sample():
    prompt = Prompt(Problem("p0", "?", "1"), "?", (1,))
    completions = tuple(Completion("", (1, 2), (-0.5,), "stop") for _ in range(SAMPLES))
    group = ScoredGroup(Group(prompt, completions), (Score(0.0, "wrong", None, 0.0),) * SAMPLES)
    with pytest.raises(UserError, match="1 log-probabilities for the 2 tokens of p0/0"):
        batches(ThreadRanks(), [group], updates=1)
