"""One step off policy: what is sampled when, by which weights, and what a checkpoint keeps."""

import threading
from types import SimpleNamespace

import pytest

from bandpo.errors import UserError
from bandpo.reward import Score
from bandpo.rollout.draws import Rollout
from bandpo.rollout.prefetch import Rollouts
from bandpo.rollout.scoring import GroupSummary, ScoredGroup
from bandpo.types import Completion, Group, Problem, Prompt


def scored(name: str, version: int, logprob: float = -0.5) -> GroupSummary:
    prompt = Prompt(Problem(name, "1+1", "2", "made", {"level": 3}), "1+1?", (5, 6), 4096)
    completion = Completion("2", (7, 8), (logprob, -1e-8), "stop", version)
    score = Score(0.1 + 0.2, "correct", "2", 0.25)
    return ScoredGroup(Group(prompt, (completion,)), (score,)).summary()


class Loop:
    """The training loop as far as rollouts know it; `log` holds what happened in which order."""

    def __init__(self, lag: int, last: int = 4, waiting=None):
        self.engine = SimpleNamespace(weight_version=1)
        self.log: list[str] = []
        self.threads: dict[int, str] = {}
        self.may_finish = threading.Event()
        self.may_finish.set()
        self.rollouts = Rollouts(
            lambda: self.engine.weight_version, self.collect, last, lag, waiting
        )

    def collect(self, step):
        version = self.engine.weight_version
        self.threads[step] = threading.current_thread().name
        self.may_finish.wait(10)
        self.log.append(f"sampled {step} with {version}")
        return Rollout([scored(f"p{step}", version)])

    def step(self, step) -> float:
        found = self.rollouts.next(step)
        assert [item.prompt.problem.id for item in found.groups] == [f"p{step}"]
        self.log.append(f"learned {step}")
        self.rollouts.settle()
        self.engine.weight_version += 1
        self.log.append(f"synced {self.engine.weight_version}")
        return self.rollouts.metrics()["rollout/lag"]


def test_without_lag_every_rollout_is_sampled_by_the_newest_weights():
    loop = Loop(lag=0)
    assert [loop.step(step) for step in (1, 2, 3)] == [0, 0, 0]
    assert loop.log[:4] == ["sampled 1 with 1", "learned 1", "synced 2", "sampled 2 with 2"]
    assert set(loop.threads.values()) == {"MainThread"}
    assert loop.rollouts.waiting is None and loop.rollouts.metrics() == {"rollout/lag": 0.0}


def test_with_lag_the_next_rollout_is_sampled_while_the_learner_updates():
    loop = Loop(lag=1)
    # The first has nothing to be late of; the last starts none.
    assert [loop.step(step) for step in (1, 2, 3, 4)] == [0, 1, 1, 1]
    sampled = sorted(line for line in loop.log if line.startswith("sampled"))
    assert sampled == [f"sampled {s} with {w}" for s, w in ((1, 1), (2, 1), (3, 2), (4, 3))]
    assert loop.log.index("sampled 2 with 1") < loop.log.index("synced 2")
    assert loop.log.index("sampled 3 with 2") < loop.log.index("synced 3")
    assert [name.startswith("rollout") for name in loop.threads.values()] == [False, *[True] * 3]
    assert loop.rollouts.waiting is None


def test_only_what_is_left_is_waited_for():
    loop = Loop(lag=1)
    loop.step(1)
    loop.may_finish.clear()
    loop.rollouts.next(2)
    assert loop.rollouts.waiting is None
    threading.Timer(0.4, loop.may_finish.set).start()
    threading.Event().wait(0.2)  # learning
    loop.rollouts.settle()
    assert 0.1 < loop.rollouts.metrics()["rollout/overlap_s"] < 0.39
    assert [item.prompt.problem.id for item in loop.rollouts.waiting.groups] == ["p3"]


def test_a_failure_ahead_is_raised_where_it_is_waited_for():
    def fail(step):
        if step == 2:
            raise UserError("no vLLM server is left")
        return Rollout([scored(f"p{step}", 1)])

    rollouts = Rollouts(lambda: 1, fail, last=3, lag=1)
    rollouts.next(1)
    with pytest.raises(UserError, match="no vLLM server is left"):
        rollouts.settle()


def test_what_waits_is_handed_out_without_sampling():
    kept = Rollout([scored("p1", 1)], {"reward/mean": 0.5})
    resumed = Loop(lag=1, last=1, waiting=kept)
    resumed.engine.weight_version = 3
    assert resumed.rollouts.next(1) == kept and resumed.log == []
    assert resumed.rollouts.metrics()["rollout/lag"] == 2
