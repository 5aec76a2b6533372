"""Nonfinite numbers and too little memory leave no trace: other updates are bitwise the same.

The results of a worker with faults (`fault_worker.py`) are compared with those without.
"""

import math
from pathlib import Path

import pytest
import torch

WORKER = Path(__file__).parent / "fault_worker.py"


@pytest.fixture(scope="module", params=[1, 2], ids=["1 rank", "2 ranks"])
def results(request, launch, untrained, tmp_path_factory):
    target = tmp_path_factory.mktemp("faults") / "results.pt"
    launch(WORKER, request.param, str(untrained()), str(target))
    return torch.load(target)


def same_weights(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_nonfinite_update_is_skipped_and_leaves_no_trace(results):
    tried = [name for name in results if name.startswith("skip/")]
    assert len(tried) == 6
    for name in tried:
        quiet = results[name]
        assert not any(result["skipped"] for result in quiet["others"])
        assert quiet["others"][0]["lr"] < quiet["others"][1]["lr"]  # the schedule moves
        for fault, found in quiet["faults"].items():
            where = f"{name} {fault}"
            assert found["skipped"]["skipped"], where
            loss, norm = found["skipped"]["loss"], found["skipped"]["grad_norm"]
            assert math.isfinite(loss) == (fault == "gradient_is_nan"), where
            assert not math.isfinite(norm), where
            assert found["others"] == quiet["others"], where
            assert same_weights(found["weights"], quiet["weights"]), where
            assert found["metrics"] == quiet["metrics"], where


def test_the_samples_at_fault_are_named_whichever_rank_holds_them(results):
    for name in results:
        if name.startswith("skip/"):
            faults = results[name]["faults"]
            # The first sample of the last rank's share of samples 2 to 7.
            assert faults["advantage_is_nan"]["skipped"]["nonfinite"] in (("p/2",), ("p/3",)), name
            assert faults["gradient_is_nan"]["skipped"]["nonfinite"] == (), name


def test_micro_batches_that_do_not_fit_are_halved_with_the_same_result(results):
    tried = [name for name in results if name.startswith("memory/")]
    assert len(tried) >= 4
    for name in tried:
        found = results[name]
        assert found["budget"] < 56, name  # of BUDGET
        first, second = found["results"]
        assert first == second and not first["skipped"], name
        assert same_weights(*found["weights"]), name
        # Neither metrics nor observers count what was started again.
        assert found["metrics"][0] == found["metrics"][1], name
        assert found["seen"] == found["tokens"], name
