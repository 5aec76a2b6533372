"""Rewards of several parts: what their scores name, and the metrics and advantages of the parts."""

import pickle
from concurrent.futures import Future

import numpy as np
import pytest
import torch
from thread_ranks import on_threads

from bandpo.advantage import RewardParts, from_parts, gdpo_advantages, group_advantages
from bandpo.artifacts.waiting import read_rollout, write_rollout
from bandpo.errors import UserError
from bandpo.ranks.collectives import Alone
from bandpo.reward import (
    FormatBonus,
    FunctionReward,
    Overlong,
    Part,
    ReleaseReward,
    Score,
    Shaped,
    WeightedSum,
    part_metrics,
)
from bandpo.rollout.draws import Rollout, rollout_metrics
from bandpo.rollout.scoring import ScoredGroup, advantages_of
from bandpo.types import Completion, Group, Problem, Prompt


def group(*lengths, name="p"):
    completions = tuple(
        Completion("Answer: 1", tuple(range(n)), (0.0,) * n, "stop") for n in lengths
    )
    return Group(Prompt(Problem(name, "?", "1"), "?", ()), completions)


class Fixed:
    """Scores given beforehand."""

    def __init__(self, *scores):
        self.scores = list(scores)

    def submit(self, group):
        future = Future()
        future.set_result(self.scores)
        return future

    def close(self):
        """Nothing to end."""


RIGHT = Score(1.0, "correct", "1", 0.1)
WRONG = Score(-1.0, "wrong", "2", 0.2)
NONE = Score(-1.0, "no_answer", None, 0.0)


def parts(reward, *lengths):
    with reward:
        return [score.parts for score in reward.submit(group(*lengths)).result(timeout=20)]


def test_terms_are_parts_with_their_weights():
    found = parts(
        Shaped(ReleaseReward(), [Overlong(100, 50, penalty=2.0), FormatBonus(0.25)]), 100, 75
    )
    assert found == [
        (Part("release", 1.0), Part("overlong", -1.0, 2.0), Part("format", 1.0, 0.25)),
        (Part("release", 1.0), Part("overlong", -0.5, 2.0), Part("format", 1.0, 0.25)),
    ]


def test_a_value_is_the_weighted_sum_of_its_parts():
    shaped = Shaped(Fixed(RIGHT, WRONG, NONE), [Overlong(9, 5, penalty=0.3), FormatBonus(0.1)])
    both = WeightedSum([shaped, Fixed(WRONG, RIGHT, RIGHT)], [2.0, -0.5])
    for score in both.submit(group(9, 7, 1)).result():
        whole = sum(part.weight * part.value for part in score.parts)
        assert score.value == pytest.approx(whole)
        assert [part.name for part in score.parts] == ["Fixed", "overlong", "format", "Fixed_2"]
        assert [part.weight for part in score.parts] == pytest.approx([2.0, 0.6, 0.2, -0.5])


def test_names_can_be_given():
    named = WeightedSum([Fixed(RIGHT), Fixed(WRONG)], [1, 2], names=["exact", "loose"])
    assert parts_of(named) == ["exact", "loose"]
    for names in (["one"], ["same", "same"]):
        with pytest.raises(UserError, match=r"reward\.names"):
            WeightedSum([Fixed(RIGHT), Fixed(WRONG)], [1, 2], names=names)


def parts_of(reward):
    (score,) = reward.submit(group(1)).result()
    return [part.name for part in score.parts]


@pytest.mark.parametrize("weights", [[float("nan"), 1.0], [1.0, None], ["much", 1.0]])
def test_weights_are_numbers(weights):
    with pytest.raises(UserError, match=r"reward\.weights"):
        WeightedSum([Fixed(RIGHT), Fixed(WRONG)], weights)


@pytest.mark.parametrize(
    "reward",
    [
        ReleaseReward(),
        Shaped(ReleaseReward(), []),
        WeightedSum([ReleaseReward()], [2.0]),
        FunctionReward(lambda problem, completion: 1.0),
        FunctionReward(lambda problem, completion: {"only": 1.0}),
    ],
)
def test_a_reward_of_one_part_names_none(reward):
    assert parts(reward, 1, 2) == [(), ()]
    assert part_metrics([RIGHT, WRONG]) == {}


def test_a_function_may_return_its_parts():
    def judge(problem, completion):
        return {"length": len(completion.token_ids), "style": np.float32(0.5)}

    with FunctionReward(judge, threshold=2.0, weights={"length": 0.5}) as reward:
        first, second = reward.submit(group(2, 4)).result(timeout=20)
    assert first.parts == (Part("length", 2.0, 0.5), Part("style", 0.5))
    assert (first.value, first.status) == (1.5, "wrong")
    assert (second.value, second.status) == (2.5, "correct")


def test_a_weight_without_a_part_is_refused():
    reward = FunctionReward(lambda problem, completion: {"a": 1.0}, weights={"b": 1.0})
    with reward, pytest.raises(UserError, match=r"reward\.weights names b: .*returned \{'a': 1\.0"):
        reward.submit(group(1)).result(timeout=20)


def test_mean_std_and_share_of_each_part_as_numpy_has_them():
    values = np.array([[1.0, -0.5], [0.0, -1.0], [1.0, 0.0]])
    weights = np.array([1.0, 0.5])
    scores = [
        Score(0.0, "wrong", None, 0.0, parts=(Part("math", a), Part("overlong", b, 0.5)))
        for a, b in values
    ]
    sizes = np.abs(values * weights).sum(0)
    found = part_metrics(scores)
    for column, name in enumerate(("math", "overlong")):
        assert found[f"reward/{name}/mean"] == pytest.approx(values[:, column].mean())
        assert found[f"reward/{name}/std"] == pytest.approx(values[:, column].std())
        assert found[f"reward/{name}/share"] == pytest.approx(sizes[column] / sizes.sum())
    nothing = [Score(0.0, "wrong", None, 0.0, parts=(Part("a", 0.0), Part("b", 0.0)))]
    assert part_metrics(nothing)["reward/a/share"] == 0.0


def scored(name, rows, weights=(1.0, 0.5)):
    """A group with the values of two parts for each of its samples."""
    scores = tuple(
        Score(
            sum(w * v for w, v in zip(weights, row, strict=True)),
            "correct" if row[0] > 0 else "wrong",
            None,
            0.0,
            parts=tuple(map(Part, ("math", "format"), row, weights)),
        )
        for row in rows
    )
    return ScoredGroup(group(*[2] * len(rows), name=name), scores)


GROUPS = {
    "a": [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0), (1.0, 1.0)],
    "b": [(0.0, 1.0), (0.0, 1.0), (0.0, 0.0), (0.0, 1.0)],
    "c": [(1.0, 1.0)] * 4,
    "d": [(1.0, 10.0), (0.0, 0.0), (0.0, 0.0), (0.0, -3.0)],
}


def test_metrics_of_a_step_have_the_parts_and_keep_all_others():
    summaries = [scored(name, rows).summary() for name, rows in GROUPS.items()]
    plain = [
        ScoredGroup(
            item.here.group, tuple(Score(s.value, s.status, None, 0.0) for s in item.scores)
        )
        for item in summaries
    ]
    before = rollout_metrics([item.summary() for item in plain])
    after = rollout_metrics(summaries)
    assert before.items() <= after.items()
    assert after.keys() - before.keys() == {
        f"reward/{n}/{m}" for n in ("math", "format") for m in ("mean", "std", "share")
    }
    kept = rollout_metrics(summaries, summaries[:1])
    assert kept["kept/reward/math/mean"] == 0.5 and kept["reward/math/mean"] == 7 / 16


def by_numpy(values, weights):
    """GDPO, written another way: [P, G, K] → [P, G]."""
    values = np.asarray(values, dtype=np.float64)
    total = np.zeros(values.shape[:2])
    for p in range(values.shape[0]):
        for k in range(values.shape[2]):
            column = values[p, :, k]
            total[p] += weights[k] * (column - column.mean()) / (column.std(ddof=1) + 1e-6)
    return (total - total.mean()) / (total.std(ddof=1) + 1e-6)


@pytest.mark.parametrize("ranks", [1, 2])
def test_parts_reach_an_estimator_that_takes_them_whatever_the_ranks(ranks):
    items = [scored(name, rows) for name, rows in GROUPS.items()]

    def of_rank(here):
        own = [item.summary(here.rank) for item in here.share(items)]
        every = here.gather_interleaved(own)
        return advantages_of(gdpo_advantages, every, 4), advantages_of(group_advantages, every, 4)

    expected = by_numpy(list(GROUPS.values()), [1.0, 0.5])
    totals = torch.tensor([item.rewards for item in items])
    for decoupled, summed in on_threads(ranks, of_rank):
        np.testing.assert_allclose(decoupled, expected, atol=1e-5)
        assert decoupled[2] == [0.0] * 4
        assert torch.equal(torch.tensor(summed), group_advantages(totals))


def test_a_reward_of_one_part_is_the_whole():
    items = [ScoredGroup(group(1, 1, name=n), (RIGHT, WRONG)).summary() for n in ("a", "b")]
    found = advantages_of(gdpo_advantages, items, 2)
    np.testing.assert_allclose(found, by_numpy([[[1.0], [-1.0]]] * 2, [1.0]), atol=1e-5)


def test_a_users_estimator_gets_names_values_and_weights():
    seen = []

    @from_parts
    def mine(parts):
        seen.append(parts)
        return parts.values[..., 0]

    assert advantages_of(mine, [scored("a", GROUPS["a"]).summary()], 4) == [[1.0, 0.0, 0.0, 1.0]]
    (given,) = seen
    assert isinstance(given, RewardParts) and given.names == ("math", "format")
    assert given.values.shape == (1, 4, 2) and given.weights.tolist() == [1.0, 0.5]
    assert advantages_of(mine, [], 4) == []


@pytest.mark.parametrize("other", [(1.0, 0.25), (1.0,)])
def test_samples_with_other_parts_cannot_be_compared_part_by_part(other):
    rows = [row[: len(other)] for row in GROUPS["a"]]
    items = [scored("a", GROUPS["a"]).summary(), scored("b", rows, other).summary()]
    with pytest.raises(UserError, match=r"1 · math, 0\.5 · format for a, .* for b"):
        advantages_of(gdpo_advantages, items, 4)


def test_parts_wait_in_a_checkpoint_and_travel_in_few_bytes(tmp_path):
    items = [scored(name, rows) for name, rows in GROUPS.items()]
    rollout = Rollout([item.summary() for item in items], {"reward/mean": 1.0})
    write_rollout(tmp_path, Alone(), rollout)
    assert [g.scores for g in read_rollout(tmp_path, Alone()).groups] == [i.scores for i in items]
    many = [scored("a", GROUPS["a"] * 64).summary().scores]
    assert len(pickle.dumps(many)) / 256 < 150
