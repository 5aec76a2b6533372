"""A run's parts for benchmarks that watch its steps from outside."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bandpo.artifacts.display import Display
from bandpo.config.schema import Config
from bandpo.run.console import RunLog
from bandpo.run.host import Host
from bandpo.run.job import Job


@contextmanager
def job_of(config: Config, host: Host | None = None) -> Iterator[Job]:
    """The job of a configuration; meanwhile only `sys.__stdout__` is the console's.

    Several in a process, one after another, need a host that outlives them.
    """
    with (
        RunLog() as log,
        Display(log.stdout, log.stderr, log.file) as display,
        Job(config, log, display, host) as job,
    ):
        yield job
