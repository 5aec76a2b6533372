"""Every check of scripts/gpu_check.sh as a test: `pytest -m gpu`."""

from collections.abc import Iterator

import pytest
import torch

from benchmarks.gpu.check import Check, Lab
from benchmarks.gpu.checks import CHECKS
from benchmarks.gpu.worker import Worker

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no NVIDIA GPU"),
]


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    worker = Worker(Lab())
    yield worker
    worker.close()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_it_passes(check: Check, worker: Worker):
    if missing := check.missing():
        pytest.skip(f"needs {', '.join(missing)}")
    outcome = worker.run(check, 500)
    assert outcome is not None, "not done in 500 s"
    assert outcome.verdict == "passed", (outcome.reason, outcome.figures)
