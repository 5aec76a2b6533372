"""A run's first step, also after a resume, refuses values that are no log-probabilities."""

from types import SimpleNamespace

from bandpo.loss.debug import is_debugging
from bandpo.run.job import Job


def test_only_the_first_step_is_taken_in_debug_mode():
    job = Job.__new__(Job)
    job.start = 2
    job.learner = SimpleNamespace(update=lambda batch, step: seen.append((step, is_debugging())))
    seen = []
    for step in (3, 3, 4):
        job.update([], step)
    assert seen == [(3, True), (3, True), (4, False)]
    assert not is_debugging()
