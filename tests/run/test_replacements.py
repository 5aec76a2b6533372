"""An engine or a reward that dies is replaced where the ranks can do so together."""

from concurrent.futures.process import BrokenProcessPool
from types import SimpleNamespace

import pytest

from bandpo.config.sections.rollout import RolloutConfig
from bandpo.reward.score import WorkerDied
from bandpo.rollout.scoring import EngineDied, RewardFailed
from bandpo.run.actor import Actor, Replaceable

RANKS = SimpleNamespace(any=lambda here: here)


def raise_any(failure):
    if failure is not None:
        raise failure


RANKS.raise_any = raise_any


class Dead:
    """An engine that cannot generate."""

    def generate(self, prompts, sampling):
        yield from ()
        raise RuntimeError("fell off the bus")


class Replaced(Exception):
    """What the test's own replacement raises."""


def actor(sampler, reward, **settings) -> Actor:
    shared = {"engine": {}, "group_size": 2, "prompts_per_step": 1, "max_tokens": 8}
    config = RolloutConfig.model_validate(shared | settings)
    sync = {"answer": None, "tolerance": 1.0, "context": 8, "weight_version": 1}
    return Actor(config, sampler, reward, None, RANKS, RANKS, **sync)


@pytest.mark.parametrize(
    ("settings", "outcome"),
    [
        ({}, Replaced),
        ({"engine": {"tensor_parallel_size": 1}}, Replaced),
        # The rank that failed would wait for the others, and they for it, in the engine.
        ({"engine": {"tensor_parallel_size": 2}}, EngineDied),
        ({"lag": 1}, EngineDied),
    ],
)
def test_the_run_ends_where_a_replacement_would_hang(settings, outcome):
    def close(engine):
        assert isinstance(engine, Dead)
        closed.append(engine)

    def make():
        if made:
            raise Replaced
        made.append(Dead())
        return made[0]

    made, closed = [], []
    reward = Replaceable("reward", object, close)
    with pytest.raises(outcome):
        actor(Replaceable("engine", make, close), reward, **settings).rollout([])
    assert closed == (made if outcome is Replaced else [])


class Failing:
    """A reward that cannot score."""

    def __init__(self, error):
        self._error = error

    def submit(self, group):
        raise self._error


@pytest.mark.parametrize("error", [WorkerDied("fell asleep"), BrokenProcessPool("fell asleep")])
def test_a_reward_whose_workers_die_a_second_time_ends_the_run(error):
    closed = []
    reward = Replaceable("reward", lambda: Failing(error), closed.append)
    group = SimpleNamespace(problem=SimpleNamespace(id="q"))
    engine = SimpleNamespace(generate=lambda prompts, sampling: iter([group]))
    first = reward.current
    with pytest.raises(RewardFailed, match="fell asleep"):
        actor(SimpleNamespace(current=engine), reward).rollout([])
    assert closed == [first] and reward.current is not first


def test_an_error_of_the_reward_itself_ends_the_run_at_once():
    closed = []
    reward = Replaceable("reward", lambda: Failing(LookupError("no such file")), closed.append)
    group = SimpleNamespace(problem=SimpleNamespace(id="q"))
    engine = SimpleNamespace(generate=lambda prompts, sampling: iter([group]))
    with pytest.raises(RewardFailed, match="samples of q: LookupError: no such file") as ended:
        actor(SimpleNamespace(current=engine), reward).rollout([])
    assert ended.value.detail.splitlines()[-1].strip() == "raise self._error"
    assert closed == [] and not reward.was_replaced


def test_a_part_is_closed_once_and_replaced_once():
    closed = []
    part = Replaceable("engine", object, closed.append)
    first = part.current
    part.replace(None)
    second = part.current
    with pytest.raises(RuntimeError, match="the engine died a second time") as error:
        part.replace(ValueError("again"))
    assert str(error.value.__cause__) == "again"
    part.close()
    part.close()
    assert closed == [first, second]
