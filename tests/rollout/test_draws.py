"""DAPO's dynamic sampling: what a step trains on, and that it does not depend on the ranks."""

import hashlib
import random
from dataclasses import replace
from itertools import chain
from types import SimpleNamespace

import pytest
from thread_ranks import ThreadRanks, on_threads

from bandpo.config.sections.rollout import RolloutConfig
from bandpo.data.sampler import PromptSampler
from bandpo.reward import Score
from bandpo.rollout.draws import Draws, rollout_metrics
from bandpo.rollout.scoring import ScoredGroup
from bandpo.rollout.seeds import Seeds
from bandpo.train import collect
from bandpo.types import Completion, Group, Problem, Prompt

RIGHT, WRONG = "correct", "wrong"
STATUSES = {"mixed": (RIGHT, WRONG, WRONG), "right": (RIGHT,) * 3, "wrong": (WRONG,) * 3}


def scored(prompt, kind, values=None) -> ScoredGroup:
    statuses = STATUSES[kind]
    values = values or [float(status == RIGHT) for status in statuses]
    numbers = random.Random(prompt.seed)
    completions = (
        Completion("x", (5,) * n, tuple(-30 * numbers.random() for _ in range(n)), "stop")
        for n in (2, 3, 4)
    )
    scores = (Score(v, s, None, 0.0) for v, s in zip(values, statuses, strict=True))
    return ScoredGroup(Group(prompt, tuple(completions)), tuple(scores))


class Loop:
    """A job as far as `collect` knows it; `kind` says how a prompt's group turns out."""

    def __init__(self, kind, problems=64, ranks=None, seed=3, **settings):
        settings = {"prompts_per_step": 8, "group_size": 3, "max_tokens": 9} | settings
        self.settings = RolloutConfig(engine={}, **settings)
        prompts = [
            Prompt(Problem(f"p{i}", "", "1", "made", {"level": i}), "", (1,))
            for i in range(problems)
        ]
        self.sampler, self.seed = PromptSampler(prompts, seed), seed
        self.kind, self.ranks = kind, ranks or ThreadRanks()
        self.said, self.batches = [], []
        self.tracker = SimpleNamespace(say=self.said.append)
        self.actor = SimpleNamespace(rollout=self.rollout)

    def draws(self, step):
        """As the job's."""
        seeds = Seeds(self.seed, step, self.settings.group_size)
        return Draws(self.settings, self.sampler, seeds, self.ranks)

    def rollout(self, prompts):
        """As the actor's."""
        self.batches.append([prompt.problem.id for prompt in prompts])
        return [self._scored(prompt, self.kind(prompt)) for prompt in prompts]

    def _scored(self, prompt, kind):
        return kind if isinstance(kind, ScoredGroup) else scored(prompt, kind)

    def step(self, step=1):
        """The rollout of a step."""
        return collect(self, step)


def names(rollout):
    return [item.prompt.problem.id for item in rollout.groups]


def known(rollout):
    """All that ranks know of the groups, whichever has them."""
    return [replace(item, rank=0, here=None) for item in rollout.groups]


def seeds(rollout):
    return [item.prompt.seed for item in rollout.groups]


def by_chance(share):
    """Mixed groups for a share of the seeds, whatever the problem."""

    def kind(prompt):
        digest = hashlib.sha256(str(prompt.seed).encode()).digest()
        return "mixed" if digest[0] < 256 * share else ("right", "wrong")[digest[1] % 2]

    return kind


def of_problem(*mixed):
    return lambda prompt: "mixed" if prompt.problem.id in mixed else "wrong"


def test_without_the_filter_one_batch_is_taken_as_it_is():
    loop = Loop(by_chance(0.5))
    rollout = loop.step()
    assert loop.batches == [names(rollout)] and len(names(rollout)) == 8
    assert rollout.metrics["rollout/groups_kept"] == rollout.metrics["rollout/groups"] == 8
    assert rollout.metrics["rollout/tokens_discarded"] == 0
    assert not any(name.startswith("kept/") for name in rollout.metrics)


def test_batches_are_drawn_until_the_step_is_full_in_the_order_of_the_draw():
    loop = Loop(by_chance(0.4), filter_groups=True)
    rollout = loop.step()
    drawn = [name for batch in loop.batches for name in batch]
    assert len(loop.batches) > 1 and loop.said == []
    assert all(item.is_mixed for item in rollout.groups) and len(rollout.groups) == 8
    assert names(rollout) == [name for name in drawn if name in names(rollout)]
    # What is kept is the beginning of what would be: the last batch was needed.
    assert set(names(rollout)) & set(loop.batches[-1])


def test_groups_that_are_all_wrong_do_not_count_for_the_length_that_they_lose():
    def shaped(prompt):
        mixed = prompt.problem.id in wanted
        return scored(prompt, *(("mixed",) if mixed else ("wrong", (-1.0, -1.3, -2.0))))

    wanted = {f"p{i}" for i in range(0, 64, 3)}
    assert set(names(Loop(shaped, filter_groups=True).step())) <= wanted
    # Those who want the reward's spread can have it.
    by_reward = Loop(shaped, filter_groups="reward")
    assert len(names(by_reward.step())) == 8 and len(by_reward.batches) == 1


@pytest.mark.parametrize("problems", [8, 11, 16, 20])
@pytest.mark.parametrize("share", [0.15, 0.4])
def test_no_group_is_trained_twice_however_often_the_data_is_gone_through(problems, share):
    loop = Loop(by_chance(share), problems, filter_groups=True)
    redrawn = 0
    for step in range(1, 20):
        loop.batches.clear()
        rollout = loop.step(step)
        assert len(set(names(rollout))) == len(set(seeds(rollout))) == 8
        drawn = [name for batch in loop.batches for name in batch]
        redrawn += len(drawn) - len(set(drawn))
        assert all(len(set(batch)) == len(batch) for batch in loop.batches)
    assert redrawn > 0


def test_a_problem_that_is_drawn_again_in_a_step_has_other_samples():
    found = []

    def kind(prompt):
        found.append(prompt.seed)
        return "wrong"

    Loop(kind, problems=8, filter_groups=True, max_refills=5).step()
    assert len({seed % 2**32 // 3 for seed in found}) == len(found) == 48


def test_a_problem_whose_group_is_kept_is_not_drawn_again():
    loop = Loop(of_problem("p1", "p2", "p3"), problems=8, filter_groups=True, max_refills=3)
    rollout = loop.step()
    assert [len(batch) for batch in loop.batches] == [8, 5, 5, 5]
    assert set(names(rollout)[:3]) == {"p1", "p2", "p3"} and len(set(names(rollout))) == 8


def test_refills_are_bounded_and_what_is_left_fills_up():
    loop = Loop(of_problem("p1"), problems=9, filter_groups=True, max_refills=2)
    rollout = loop.step(7)
    assert len(loop.batches) == 3 and len(set(names(rollout))) == 8
    assert names(rollout)[0] == "p1" and not any(item.is_mixed for item in rollout.groups[1:])
    assert "step 7: 1 of 8 groups had right and wrong answers after 2 refills" in loop.said[0]


@pytest.mark.parametrize("filtered", [False, True])
def test_a_step_that_teaches_nothing_is_said(filtered):
    loop = Loop(lambda _: "right", filter_groups=filtered, max_refills=1)
    assert len(loop.step(7).groups) == 8
    assert "step 7: the rewards of every group are equal" in loop.said[-1]
    assert len(loop.said) == 1 + filtered


@pytest.mark.parametrize("size", [2, 4, 8])
@pytest.mark.parametrize("problems", [13, 64])
def test_every_number_of_ranks_trains_on_the_same(size, problems):
    alone = Loop(by_chance(0.5), problems, filter_groups=True)
    expected = [alone.step(step) for step in (1, 2, 3, 4)]

    def several(ranks):
        loop = Loop(by_chance(0.5), problems, ranks, filter_groups=True)
        return loop, [loop.step(step) for step in (1, 2, 3, 4)]

    loops, found = zip(*on_threads(size, several), strict=True)
    assert [[(known(r), r.metrics) for r in steps] for steps in found] == [
        [(known(r), r.metrics) for r in expected]
    ] * size
    for steps in zip(expected, *found, strict=True):
        # Every group is whole on the rank that sampled it, and on no other.
        for whole, *parts in zip(*(rollout.groups for rollout in steps), strict=True):
            assert [rank for rank, part in enumerate(parts) if part.here] == [parts[0].rank]
            assert parts[parts[0].rank].here == whole.here
    # No more batches than one rank needs, each shared out.
    assert [len(loop.batches) for loop in loops] == [len(alone.batches)] * size
    for whole, *shares in zip(alone.batches, *(loop.batches for loop in loops), strict=True):
        assert sorted(chain.from_iterable(shares)) == sorted(whole)


def test_metrics_are_of_all_that_was_drawn_beside_what_was_kept():
    prompts = [Prompt(Problem(f"p{i}", "", "1"), "", (1,)) for i in range(4)]
    kinds = ("mixed", "right", "wrong", "mixed")
    mixed, right, wrong, odd = (
        scored(*pair).summary() for pair in zip(prompts, kinds, strict=True)
    )
    metrics = rollout_metrics([mixed, right, wrong, odd], [mixed, odd])
    assert metrics["reward/mean"] == pytest.approx(5 / 12)
    assert metrics["kept/reward/mean"] == pytest.approx(1 / 3)
    assert (metrics["reward/zero_std_groups"], metrics["kept/reward/zero_std_groups"]) == (2, 0)
    assert (metrics["rollout/groups"], metrics["rollout/groups_kept"]) == (4, 2)
    assert (metrics["length/tokens"], metrics["kept/length/tokens"]) == (36, 18)
    assert metrics["rollout/tokens_discarded"] == 18
