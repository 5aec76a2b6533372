"""Samples of advantage 0 get no backward pass where the loss has no gradient for them.

Nothing else changes (`zero_advantage_worker.py`): loss, gradient, metrics and token records are
those of an update that computes them all.
"""

from pathlib import Path

import pytest
import torch

WORKER = Path(__file__).parent / "zero_advantage_worker.py"


@pytest.fixture(scope="module", params=[1, 2], ids=["1 rank", "2 ranks"])
def results(request, launch, untrained, tmp_path_factory):
    target = tmp_path_factory.mktemp("zero") / "results.pt"
    launch(WORKER, request.param, str(untrained()), str(target))
    return torch.load(target)


def splits(results):
    """(tokens of a micro-batch, found where they are skipped, where they are computed)."""
    found = [(key[1], *pair.values()) for key, pair in results.items() if isinstance(key, tuple)]
    assert len(found) >= 4
    return found


def test_the_update_is_the_same(results):
    for budget, skipped, computed in splits(results):
        for mine, wanted in zip(skipped["results"], computed["results"], strict=True):
            assert mine["loss"] == pytest.approx(wanted["loss"], abs=1e-6)
            assert mine["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=1e-5, abs=1e-9)
            assert not mine["skipped"]
        assert computed["results"][2]["grad_norm"] == 0
        for name, weight in computed["weights"].items():
            if budget == 1:  # the same micro-batches, but for those without a gradient
                assert torch.equal(skipped["weights"][name], weight), name
            torch.testing.assert_close(skipped["weights"][name], weight, atol=1e-4, rtol=1e-4)


def test_every_metric_and_record_counts_all_samples(results):
    for _, skipped, computed in splits(results):
        for mine, wanted in zip(skipped["metrics"], computed["metrics"], strict=True):
            assert mine == pytest.approx(wanted, rel=1e-3, abs=1e-5)
            assert mine["policy/entropy"] == pytest.approx(wanted["policy/entropy"], rel=1e-5)
        records = (sorted(found["records"], key=str) for found in (skipped, computed))
        for mine, wanted in zip(*records, strict=True):
            for values, expected in zip(mine, wanted, strict=True):
                assert values == pytest.approx(expected, abs=1e-3)


def test_only_samples_with_a_gradient_are_passed_backward(results):
    for _, skipped, computed in splits(results):
        none, some, all_of_them = skipped["tokens"]
        assert none == computed["tokens"][0] and none["without"] == 0
        assert 0 < some["with gradient"] < computed["tokens"][1]["with gradient"]
        assert some["without"] > 0
        # One pass that only keeps momentum and schedule moving.
        assert all_of_them["with gradient"] < 20
        assert all(tokens["without"] == 0 for tokens in computed["tokens"])


def test_a_nonfinite_sample_without_a_gradient_still_stops_the_update(results):
    poisoned = results["poisoned"]
    assert poisoned["skipped"] and poisoned["nonfinite"] == ("p/2",)


def test_micro_batches_are_halved_by_the_samples_that_did_not_fit(results):
    """A sample of 300 tokens that needs no activations says nothing of these."""
    starved = results["starved"]
    assert not starved["skipped"] and starved["budget"] <= 40
