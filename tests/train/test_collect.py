"""DAPO's dynamic sampling: groups without reward spread are replaced, as far as allowed."""

from types import SimpleNamespace

import pytest

from bandpo.reward import Score
from bandpo.rollout.judge import JudgedGroup
from bandpo.train import collect
from bandpo.types import Group, Problem, Prompt


def judged(name: str, spread: bool) -> JudgedGroup:
    prompt = Prompt(Problem(name, name, "1"), name, (1,))
    values = (1.0, 0.0) if spread else (1.0, 1.0)
    scores = tuple(Score(v, "correct" if v else "wrong", None, 0.0) for v in values)
    return JudgedGroup(Group(prompt, ()), scores)


@pytest.fixture
def job():
    """A job whose rollouts are the batches in `job.coming`; `job.drawn` counts them."""
    job = SimpleNamespace(
        config=SimpleNamespace(rollout=SimpleNamespace(filter_groups=True, max_refills=3)),
        rollout_ranks=SimpleNamespace(any=lambda here: here),
        tracker=SimpleNamespace(say=lambda text: job.said.append(text)),
        **{"said": [], "drawn": 0},
        seeds=lambda step: None,
        next_prompts=lambda seeds, refill=0: None,
    )

    def rollout(prompts):
        job.drawn += 1
        return [judged(f"{job.drawn}{i}", spread) for i, spread in enumerate(job.coming.pop(0))]

    job.rollout = rollout
    return job


def names(groups):
    return [item.group.problem.id for item in groups]


def test_without_the_filter_one_batch_is_taken_as_it_is(job):
    job.config.rollout.filter_groups = False
    job.coming = [[False, True]]
    assert names(collect(job, 1)) == ["10", "11"]


def test_equal_groups_are_replaced_until_the_number_is_full(job):
    job.coming = [[True, False, False], [False, True, False], [True, True, True]]
    assert names(collect(job, 1)) == ["10", "21", "30"]
    assert job.drawn == 3 and job.said == []


def test_refills_are_bounded_and_what_is_left_fills_up(job):
    job.coming = [[True, False], [False, False], [False, False], [False, False]]
    assert names(collect(job, 1)) == ["10", "40"]
    assert job.drawn == 4


def test_a_step_that_teaches_nothing_is_said(job):
    job.config.rollout.max_refills = 1
    job.coming = [[False, False]] * 2
    assert len(collect(job, 7)) == 2
    assert "step 7: the rewards of every group are equal" in job.said[0]
