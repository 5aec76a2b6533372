"""Samples that the limit cut off: which are in the loss, the baseline and the filter's eyes."""

from statistics import fmean, stdev

import pytest
import torch
from test_draws import Loop, names, scored

from bandpo.advantage import centered_advantages, group_advantages
from bandpo.batching import schedule
from bandpo.config.composition import compose
from bandpo.config.schema import Config
from bandpo.config.sections.rollout import RolloutConfig
from bandpo.errors import UserError
from bandpo.reward import Score
from bandpo.rollout.groups.truncation import Truncation
from bandpo.rollout.scoring import ScoredGroup
from bandpo.types import Completion, Group, Problem, Prompt


def group(values, cut, name="p0", statuses=None):
    """A group of these rewards, of which some were cut off."""
    completions = tuple(
        Completion("x", (5,) * (i + 1), (-1.0,) * (i + 1), "length" if c else "stop")
        for i, c in enumerate(cut)
    )
    statuses = statuses or ["correct" if value > 0 else "wrong" for value in values]
    scores = tuple(Score(v, s, None, 0.0) for v, s in zip(values, statuses, strict=True))
    return ScoredGroup(Group(Prompt(Problem(name, "", "1"), "", (1,)), completions), scores)


ITEM = group([1.0, 0.0, 1.0, 0.0], [False, False, False, True])
KEEP = Truncation()
MASK = Truncation(masked=True)
APART = Truncation(masked=True, in_baseline=False)


def advantages(truncation, *items, estimate=group_advantages):
    summaries = [item.summary() for item in items]
    rewards = torch.tensor([item.rewards for item in items])
    return truncation.estimator(estimate, summaries)(rewards)


def test_the_settings_say_which():
    def of(**settings):
        base = {"engine": {}, "prompts_per_step": 1, "max_tokens": 8}
        return Truncation.of(RolloutConfig(**base, **settings))

    assert of() == of(truncated_penalty=3.0) == KEEP
    assert of(truncated="mask") == MASK
    assert of(truncated="mask", truncated_in_baseline=False) == APART
    assert of(truncated="penalise") == Truncation(penalty=1.0)


def test_the_baseline_has_the_masked_sample_or_has_it_not():
    for truncation, counted in ((KEEP, [1, 0, 1, 0]), (MASK, [1, 0, 1, 0]), (APART, [1, 0, 1])):
        expected = [(v - fmean(counted)) / (stdev(counted) + 1e-6) for v in counted]
        assert advantages(truncation, ITEM)[0][: len(counted)].tolist() == pytest.approx(expected)
    assert advantages(APART, ITEM, estimate=centered_advantages)[0].tolist() == pytest.approx(
        [1 / 3, -2 / 3, 1 / 3, 0]
    )


def test_a_step_without_a_usable_group_has_no_advantages():
    for truncation in (KEEP, MASK, APART):
        found = truncation.estimator(group_advantages, [])(torch.empty(0, 4))
        assert found.shape == (0, 4)


def test_masked_samples_are_in_no_minibatch():
    items = [ITEM, group([0.0, 1.0, 0.0, 0.0], [True, False, True, False], "p1")]
    summaries = [item.summary() for item in items]
    assert KEEP.masked_places(summaries) == frozenset()
    masked = MASK.masked_places(summaries)
    assert masked == APART.masked_places(summaries) == {(0, 3), (1, 0), (1, 2)}
    lengths = [item.lengths for item in summaries]
    for ranks in (1, 2, 3):
        batches = schedule(
            lengths, float, updates=2, epochs=2, seed="1", ranks=ranks, masked=masked
        )
        for epoch in (batches[:2], batches[2:]):
            places = [place for batch in epoch for share in batch for place in share]
            assert sorted(places) == [(0, 0), (0, 1), (0, 2), (1, 1), (1, 3)]


def test_without_masks_the_schedule_is_what_it_was():
    lengths = [(3, 9, 2), (4, 4, 4), (8, 1, 6)]
    plain = schedule(lengths, float, updates=2, epochs=2, seed="7", ranks=2)
    assert schedule(lengths, float, updates=2, epochs=2, seed="7", ranks=2, masked=()) == plain


def test_a_penalty_comes_off_the_reward_and_not_off_the_verdict():
    item = Truncation(penalty=0.75).penalised(group([1.0, 0.0, 1.0], [True, True, False]))
    assert item.rewards == [0.25, -0.75, 1.0]
    assert [score.correct for score in item.scores] == [True, False, True]
    assert KEEP.penalised(ITEM) is ITEM and MASK.penalised(ITEM) is ITEM


def test_what_was_masked_is_counted():
    items = [ITEM.summary(), group([1.0, 0.0], [True, True], "p1").summary()]
    assert MASK.metrics(items) == {
        "rollout/masked_samples": 3,
        "rollout/masked_tokens": 4 + 1 + 2,
        "rollout/masked_groups": 1,
    }
    assert KEEP.metrics(items) == {}


# --- With filter_groups ------------------------------------------------------------------------

# (rewards, cut off, what the filters say: with the masked ones in the baseline, and without)
CASES = [
    ([1, 0, 1], [False, False, False], True, True),
    ([1, 1, 0], [False, False, True], True, False),  # only a masked one differs
    ([1, 0, 0], [False, False, True], True, True),
    ([1, 0, 1], [True, True, True], False, False),  # nothing is left to learn from
    ([1, 1, 1], [False, False, True], False, False),
]


@pytest.mark.parametrize("filtered", ["accuracy", "reward"])
@pytest.mark.parametrize(("rewards", "cut", "with_them", "without"), CASES)
def test_a_filter_looks_at_what_is_learned(filtered, rewards, cut, with_them, without):
    for in_baseline, expected in ((True, with_them), (False, without)):
        loop = Loop(
            lambda prompt: ScoredGroup(
                Group(prompt, group(rewards, cut).group.completions), group(rewards, cut).scores
            ),
            prompts_per_step=2,
            filter_groups=filtered,
            max_refills=1,
            truncated="mask",
            truncated_in_baseline=in_baseline,
        )
        loop.step()
        assert len(loop.batches) == (1 if expected else 2)


def test_a_step_in_which_all_are_masked_is_said_and_has_groups():
    loop = Loop(
        lambda prompt: ScoredGroup(
            Group(prompt, group([1.0, 0.0, 0.0], [True] * 3).group.completions),
            group([1.0, 0.0, 0.0], [True] * 3).scores,
        ),
        truncated="mask",
    )
    rollout = loop.step(5)
    assert len(names(rollout)) == 8
    (note,) = loop.said
    assert "step 5: every completion was cut off at rollout.max_tokens=9 and is masked" in note
    assert rollout.metrics["rollout/masked_samples"] == 24
    assert rollout.metrics["rollout/masked_groups"] == 8


def test_without_masks_no_metric_is_added():
    assert not any("masked" in name for name in Loop(lambda p: scored(p, "mixed")).step().metrics)


# --- Settings that do not go together ----------------------------------------------------------


def problems_of(*overrides):
    with pytest.raises(UserError) as caught:
        compose("train", list(overrides), Config)
    return str(caught.value)


def test_settings_without_effect_are_refused():
    text = problems_of("rollout.truncated_in_baseline=false")
    assert "rollout.truncated_in_baseline=false needs rollout.truncated=mask, not keep" in text
    compose("train", ["rollout.truncated=mask", "rollout.truncated_in_baseline=false"], Config)


def test_an_advantage_that_knows_no_valid_samples_is_refused():
    text = problems_of(
        "rollout.truncated=mask",
        "rollout.truncated_in_baseline=false",
        "method.advantage={_target_: torch.zeros_like, _partial_: true}",
    )
    assert "needs an advantage that takes the valid samples" in text
