"""The diagnostics against loops over tokens."""

import dataclasses
import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bandpo.loss import (
    BandKL,
    BatchTotals,
    Capped,
    Clip,
    DualClip,
    LossDiagnostics,
    LossOutput,
    PolicyLoss,
    ReferenceKL,
    TokenBatch,
    TokenMean,
    TokenRatio,
    batch_totals,
)
from bandpo.loss.diagnostics import BINS, EDGES, SIGNS

LOSS = PolicyLoss(
    TokenRatio(), DualClip(Clip(Capped(BandKL(0.02), 10.0)), 3.0), TokenMean(), ReferenceKL(0.1)
)


def random_output(seed: int, sequences: int = 40, tokens: int = 30) -> LossOutput:
    generator = torch.Generator().manual_seed(seed)

    def normal() -> torch.Tensor:
        return torch.randn(sequences, tokens, generator=generator)

    old_logp = -normal().abs() * 3
    beside_edges = torch.tensor([edge * factor for edge in EDGES for factor in (0.999, 1.001)])
    old_logp[0, : len(beside_edges)] = beside_edges.log()
    batch = TokenBatch(
        logp=old_logp + 0.7 * normal(),
        old_logp=old_logp,
        advantages=normal() * (normal() > -0.5),
        mask=(normal() > -1).float(),
        ref_logp=old_logp + 0.1 * normal(),
        rollout_logp=old_logp + 0.01 * normal(),
        entropy=normal().abs(),
    )
    return LOSS(batch, batch_totals(batch.mask))


def diagnose(*outputs: LossOutput) -> LossDiagnostics:
    diagnostics = LossDiagnostics()
    for output in outputs:
        diagnostics.update(output)
    return diagnostics


def binary_kl(p: float, q: float) -> float:
    """KL of (token, all others) from old probability p to q; no distribution has q >= 1."""
    if q >= 1:
        return math.inf
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def token_records(output: LossOutput) -> list[dict[str, float]]:
    """One dictionary a token, with everything recomputed by the definitions, in Python floats."""
    batch, records = output.batch, []
    for i, j in itertools.product(*map(range, batch.mask.shape)):
        if batch.mask[i, j] == 0:
            continue
        logp, old, a = (x[i, j].item() for x in (batch.logp, batch.old_logp, batch.advantages))
        ratio, p_new = math.exp(logp - old), math.exp(logp)
        low, high = (x[i, j].item() for x in output.interval)
        above, below = a > 0 and ratio > high, a < 0 and ratio < low
        dual = a < 0 and ratio > 3.0
        records.append(
            {
                "bin": sum(old >= math.log(edge) for edge in EDGES),
                "p": math.exp(old),
                "sign": (a > 0) - (a < 0),
                "mass": abs(a),
                "removed": abs(a) * (above or below or dual),
                "high": above,
                "low": below,
                "dual": dual,
                "ratio": ratio,
                "above_band": ratio > 10 or (ratio > 1 and binary_kl(math.exp(old), p_new) > 0.05),
                "bound_low": low,
                "bound_high": high,
                "kl_old": ratio - 1 - (logp - old),
                "kl_ref": output.reference_kl[i, j].item(),
                "entropy": batch.entropy[i, j].item(),
                "mismatch": abs(old - batch.rollout_logp[i, j].item()),
                "log_weight": old - batch.rollout_logp[i, j].item(),
                "sequence": i,
            }
        )
    return records


def mean(records: list[dict[str, float]], key: str) -> float:
    return sum(record[key] for record in records) / len(records)


def mismatch_metrics(records: list[dict[str, float]]) -> dict[str, float]:
    """Those that have definitions in docs/metrics.md, without a correction."""
    by_sequence: dict[float, float] = {}
    for r in records:
        by_sequence[r["sequence"]] = by_sequence.get(r["sequence"], 0.0) + r["log_weight"]
    weights = [r["log_weight"] for r in records]
    return {
        "mismatch/kl": -sum(weights) / len(weights),
        "mismatch/k3": sum(math.exp(x) - x - 1 for x in weights) / len(weights),
        "mismatch/masked_frac": 0.0,
        "mismatch/sequence_weight_max": max(math.exp(x) for x in by_sequence.values()),
    }


def test_metrics():
    output = random_output(0)
    metrics, records = diagnose(output).metrics(), token_records(output)
    rare = [r for r in records if r["p"] < 0.1 and r["sign"] > 0]
    expected = {
        "ratio/mean": mean(records, "ratio"),
        "ratio/max": max(r["ratio"] for r in records),
        "clip/high_frac": mean(records, "high"),
        "clip/low_frac": mean(records, "low"),
        "clip/dual_frac": mean(records, "dual"),
        "clip/mass_removed_frac": mean(records, "removed") / mean(records, "mass"),
        "bounds/low_mean": mean(records, "bound_low"),
        "bounds/high_mean": mean(records, "bound_high"),
        "policy/kl_old": mean(records, "kl_old"),
        "policy/kl_ref": mean(records, "kl_ref"),
        "policy/entropy": mean(records, "entropy"),
        "mismatch/logprob_abs_mean": mean(records, "mismatch"),
        "mismatch/logprob_abs_max": max(r["mismatch"] for r in records),
        **mismatch_metrics(records),
        "reach/rare_frac": len(rare) / len(records),
        "reach/above_high_frac": sum(r["ratio"] > r["bound_high"] for r in rare) / len(rare),
        "reach/above_canonical_frac": sum(r["ratio"] > 1.2 for r in rare) / len(rare),
        "reach/above_band_frac": mean(rare, "above_band"),
    }
    for i, name in enumerate(BINS):
        inside = [r for r in records if r["bin"] == i]
        expected[f"clip/bin_{name}/count"] = len(inside)
        if inside:
            prefix = f"clip/bin_{name}"
            expected |= {
                f"{prefix}/{key}_frac": mean(inside, key) for key in ("high", "low", "dual")
            }
            mass = mean(inside, "mass")
            expected[f"{prefix}/mass_removed_frac"] = mean(inside, "removed") / mass if mass else 0
    assert metrics.keys() == expected.keys()
    assert metrics == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert metrics["clip/dual_frac"] > 0 and metrics["clip/high_frac"] > 0  # the test sees them
    reach = [metrics[f"reach/above_{name}_frac"] for name in ("band", "high", "canonical")]
    assert 0 < reach[0] < reach[1] < reach[2] < 1  # and tells them apart


def test_table():
    output = random_output(1)
    records = token_records(output)
    rows = diagnose(output).table()
    assert sum(row["tokens"] for row in rows) == len(records)
    for row in rows:
        sign = SIGNS.index(row["advantage"]) - 1
        inside = [r for r in records if r["bin"] == BINS.index(row["bin"]) and r["sign"] == sign]
        assert row["tokens"] == len(inside)
        assert row["binding_high"] == pytest.approx(mean(inside, "high") + mean(inside, "dual"))
        assert row["binding_low"] == pytest.approx(mean(inside, "low"))
        assert row["high"] == pytest.approx(mean(inside, "bound_high"), rel=1e-5)
        assert row["low"] == pytest.approx(mean(inside, "bound_low"), rel=1e-5)
        assert row["entropy"] == pytest.approx(mean(inside, "entropy"), rel=1e-5)
        assert row["mass_removed"] == pytest.approx(mean(inside, "removed"), rel=1e-5)


@given(st.integers(0, 2**31))
def test_ranks_and_micro_batches_add_up(seed):
    outputs = [random_output(seed + k, sequences=3 + k) for k in range(3)]
    together = diagnose(*outputs)
    ranks = [diagnose(output) for output in outputs]
    summed = sum(rank.sums for rank in ranks)
    torch.testing.assert_close(summed, together.sums, rtol=1e-14, atol=0)
    counts = torch.isclose(together.sums, together.sums.round(), rtol=0, atol=0)
    assert torch.equal(summed[counts], together.sums[counts])  # counts exactly
    assert torch.equal(torch.stack([r.maxima for r in ranks]).amax(0), together.maxima)


def test_blocks_do_not_show():
    wide = random_output(3, sequences=300, tokens=100)  # more tokens than one block
    halves = []
    for rows in (slice(0, 7), slice(7, 300)):
        parts = {
            field.name: value[rows]
            for field in dataclasses.fields(wide.batch)
            if isinstance(value := getattr(wide.batch, field.name), torch.Tensor)
        }
        halves.append(LOSS(TokenBatch(**parts), BatchTotals(1, 1)))
    torch.testing.assert_close(diagnose(wide).sums, diagnose(*halves).sums)


def test_absent_values_have_no_metric():
    batch = TokenBatch(*(torch.full((2, 3), x) for x in (-1.0, -1.0, 1.0, 1.0)))
    loss = PolicyLoss(TokenRatio(), Clip(BandKL(0.05)), TokenMean())
    metrics = diagnose(loss(batch)).metrics()
    absent = {"policy/kl_ref", "policy/entropy"}
    assert not absent & metrics.keys()
    assert not any(name.startswith("mismatch/") for name in metrics)
    assert metrics["policy/kl_old"] == 0


def test_no_tokens_no_metrics():
    assert LossDiagnostics().metrics() == {}
    batch = TokenBatch(*(torch.zeros(2, 3) for _ in range(4)))
    loss = PolicyLoss(TokenRatio(), Clip(BandKL(0.05)), TokenMean())
    diagnostics = diagnose(loss(batch, BatchTotals(1, 1)))
    assert diagnostics.metrics() == {} and diagnostics.table() == []
