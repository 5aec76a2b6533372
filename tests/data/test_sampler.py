"""The sampler is a function of seed and data alone, and continues exactly where it stopped."""

import dataclasses
import json

import pytest

from bandpo.data.sampler import PromptSampler
from bandpo.errors import UserError
from bandpo.types import Problem, Prompt

PROMPTS = [Prompt(Problem(f"p{i}", f"q{i}", str(i)), f"<q{i}>", (i,)) for i in range(23)]


def ids(prompts):
    return [p.problem.id for p in prompts]


def test_an_epoch_has_every_prompt_once_and_epochs_differ():
    sampler = PromptSampler(PROMPTS, seed=1)
    first, second = ids(sampler.next(23)), ids(sampler.next(23))
    assert set(first) == set(second) == {f"p{i}" for i in range(23)}
    assert first != second != ids(PROMPTS)
    assert ids(PromptSampler(PROMPTS, seed=2).next(23)) != first


def test_requests_never_hold_a_prompt_twice():
    sampler = PromptSampler(PROMPTS, seed=1)
    for _ in range(30):
        assert len(set(ids(sampler.next(5)))) == 5
    # 4 requests of 5 fit into 23 prompts: the 30th ends the 8th epoch's second request
    assert (sampler.epoch, sampler.position) == (7, 10)


def test_what_is_excluded_is_passed_over_and_the_epoch_goes_on():
    sampler, plain = PromptSampler(PROMPTS, seed=1), PromptSampler(PROMPTS, seed=1)
    order = ids(plain.next(23))
    assert ids(sampler.next(5)) == order[:5]
    assert ids(sampler.next(3, without={order[5], order[7], "p-of-no-one"})) == [
        order[6],
        *order[8:10],
    ]
    assert ids(sampler.next(2)) == order[10:12]
    # Another epoch where this one has not enough of the others.
    again = ids(sampler.next(10, without=set(order[12:15])))
    assert sampler.epoch == 1 and len(set(again)) == 10 and not set(again) & set(order[12:15])


def test_fewer_than_asked_for_where_the_others_are_excluded():
    sampler = PromptSampler(PROMPTS, seed=1)
    sampler.next(20)
    found = sampler.next(20, without={f"p{i}" for i in range(15)})
    assert {*ids(found)} == {f"p{i}" for i in range(15, 23)} and len(found) == 8
    assert sampler.next(5, without={f"p{i}" for i in range(23)}) == []


def test_the_order_of_the_file_does_not_matter():
    one, two = PromptSampler(PROMPTS, 3), PromptSampler(PROMPTS[::-1], 3)
    assert ids(one.next(10)) == ids(two.next(10))
    assert one.fingerprint == two.fingerprint


@pytest.mark.parametrize("taken", [0, 1, 4, 5, 13])
def test_a_restored_sampler_continues_the_sequence(taken):
    sampler = PromptSampler(PROMPTS, seed=7)
    for _ in range(taken):
        sampler.next(5)
    state = json.loads(json.dumps(sampler.state_dict()))
    restored = PromptSampler(PROMPTS, seed=7)
    restored.load_state_dict(state)
    assert [ids(restored.next(5)) for _ in range(9)] == [ids(sampler.next(5)) for _ in range(9)]


@pytest.mark.parametrize(
    "changed",
    [
        PROMPTS[:-1],
        [*PROMPTS[:-1], dataclasses.replace(PROMPTS[-1], text="other")],
        [
            *PROMPTS[:-1],
            dataclasses.replace(
                PROMPTS[-1], problem=dataclasses.replace(PROMPTS[-1].problem, answer="0")
            ),
        ],
    ],
)
def test_changed_data_is_refused(changed):
    state = PromptSampler(PROMPTS, seed=7).state_dict()
    with pytest.raises(UserError, match="training data or its prompts changed"):
        PromptSampler(changed, seed=7).load_state_dict(state)


def test_changed_tokens_are_refused_and_checkpoints_without_them_are_not():
    changed = [*PROMPTS[:-1], dataclasses.replace(PROMPTS[-1], token_ids=(1, 2))]
    state = PromptSampler(PROMPTS, seed=7).state_dict()
    with pytest.raises(UserError, match="the tokens of the prompts changed"):
        PromptSampler(changed, seed=7).load_state_dict(state)
    del state["tokens"]  # as earlier versions wrote it
    PromptSampler(changed, seed=7).load_state_dict(state)


def test_a_changed_seed_too_many_prompts_and_none():
    sampler = PromptSampler(PROMPTS, seed=7)
    with pytest.raises(UserError, match="the seed changed"):
        PromptSampler(PROMPTS, seed=8).load_state_dict(sampler.state_dict())
    for asked in (sampler.next, sampler.require):
        with pytest.raises(UserError, match=r"24 prompts per step .* only 23"):
            asked(24)
    sampler.require(23)
    with pytest.raises(UserError, match="no prompts"):
        PromptSampler([], seed=1)
    with pytest.raises(ValueError, match="same problem id"):
        PromptSampler([PROMPTS[0], PROMPTS[0]], seed=1)
