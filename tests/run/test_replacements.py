"""An engine or a reward that dies is replaced where the ranks can do so together."""

from types import SimpleNamespace

import pytest

from bandpo.rollout.scoring import EngineDied
from bandpo.run.job import Job


class Dead:
    """An engine that cannot generate."""

    def generate(self, prompts, sampling):
        yield from ()
        raise RuntimeError("fell off the bus")


class Replaced(Exception):
    """What the test's own replacement raises."""


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
def test_the_run_ends_where_a_replacement_would_hang(settings, outcome, monkeypatch):
    monkeypatch.setattr(Job, "sampling", None)
    ranks = SimpleNamespace(any=lambda here: here, raise_any=lambda failure: None)
    job = Job.__new__(Job)
    job.config = SimpleNamespace(rollout=SimpleNamespace(**{"lag": 0, "engine": {}, **settings}))
    job.engine, job.reward, job.ranks, job.rollout_ranks = Dead(), None, ranks, ranks

    def replace(part, death):
        assert part == "engine"
        raise Replaced

    job._replace = replace
    with pytest.raises(outcome):
        job.rollout([])
