"""`bandpo.loss` on the device: against float64, and what its bounds cost."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from bandpo.loss import (
    KL,
    AlphaDivergence,
    Band,
    Bounds,
    ChiSquared,
    Clip,
    Compiled,
    ConstantNorm,
    DualClip,
    DynamicAdaptive,
    Fixed,
    GeometricMean,
    GradientPreservingClip,
    JensenShannon,
    LossDiagnostics,
    LossOutput,
    Mask,
    OffPolicySequenceMask,
    PolicyLoss,
    QuadraticPenalty,
    ReferenceKL,
    ReverseKL,
    SequenceMeanTokenMean,
    SequenceMeanTokenSum,
    SequenceRatio,
    SoftGate,
    SquaredHellinger,
    SquaredLogRatio,
    TokenBatch,
    TokenMean,
    TokenRatio,
    TotalVariation,
    TruncatedWeight,
)
from bandpo.loss.diagnostics import CANONICAL_HIGH
from benchmarks.gpu.check import Figure, Lab
from benchmarks.gpu.networks import BOUNDS

DIVERGENCES = (
    *(KL(), ReverseKL(), TotalVariation(), ChiSquared(), SquaredHellinger(), JensenShannon()),
    AlphaDivergence(0.5),
)


def losses() -> Iterator[tuple[str, PolicyLoss]]:
    """Every divergence under a clip; every ratio, surrogate and aggregate with Band-KL."""
    clip, mean, pull = Clip(BOUNDS), SequenceMeanTokenMean(), ReferenceKL(0.1)
    rules: list[Bounds] = [Band(divergence, 0.05) for divergence in DIVERGENCES]
    rules += [Fixed(0.2, 0.28), DynamicAdaptive(0.16, 0.2)]
    for bounds in rules:
        yield repr(bounds), PolicyLoss(TokenRatio(), Clip(bounds), mean, pull)
    surrogates = (
        *(Mask(BOUNDS), DualClip(clip, 3.0), TruncatedWeight(BOUNDS), QuadraticPenalty(0.2)),
        *(SoftGate(), GradientPreservingClip(BOUNDS), GeometricMean(BOUNDS)),
        *(OffPolicySequenceMask(clip), SquaredLogRatio(clip)),
    )
    for surrogate in surrogates:
        yield repr(surrogate), PolicyLoss(TokenRatio(), surrogate, mean, pull)
    for aggregate in (TokenMean(), SequenceMeanTokenSum(), ConstantNorm(100)):
        yield repr(aggregate), PolicyLoss(TokenRatio(), clip, aggregate, pull)
    yield "SequenceRatio", PolicyLoss(SequenceRatio(), Clip(Fixed(3e-4, 4e-4)), mean, pull)


def random_batch(sequences: int, tokens: int, seed: int = 0) -> TokenBatch:
    """Old probabilities from almost 1 to 1e-13, as float32; a quarter of the tokens masked."""
    draw = torch.Generator().manual_seed(seed)

    def normal() -> Tensor:
        return torch.randn(sequences, tokens, generator=draw)

    old = -(10 ** (torch.rand(sequences, tokens, generator=draw) * 5 - 3.5))
    advantages = normal()[:, :1].expand(sequences, tokens)
    return TokenBatch(
        logp=(old + 0.5 * normal()).clamp(max=0.0),
        old_logp=old,
        advantages=advantages.contiguous(),
        mask=(torch.rand(sequences, tokens, generator=draw) < 0.75).float(),
        ref_logp=(old + 0.5 * normal()).clamp(max=0.0),
        rollout_logp=(old + 0.01 * normal()).clamp(max=0.0),
        entropy=normal().abs(),
    )


def against_float64(lab: Lab) -> Mapping[str, Figure]:
    """The largest relative errors of float32 there against float64 on the CPU, over all losses.

    Tokens whose ratio is on a bound up to rounding are masked: which side they are on is chance.
    """
    drawn = random_batch(8, 64) if lab.tiny else random_batch(64, 1024)
    worst = dict.fromkeys(("loss", "gradient", "bounds", "diagnostics"), 0.0)
    for _, loss in losses():
        batch = replace(drawn, mask=drawn.mask * _off_the_bounds(loss(_as_double(drawn))))
        ours = _taken(loss, batch.to(lab.device))
        exact = _taken(loss, _as_double(batch))
        for name, error in _errors(ours, exact, batch.mask.bool()).items():
            worst[name] = max(worst[name], error if math.isfinite(error) else math.inf)
    bars = {"loss": 1e-4, "gradient": 1e-3, "bounds": 1e-4, "diagnostics": 1e-3}
    return {f"{name}_error": Figure(error, at_most=bars[name]) for name, error in worst.items()}


def _off_the_bounds(output: LossOutput) -> Tensor:
    """1 where the ratio is neither on a bound nor on those that the diagnostics count against."""
    band = BOUNDS(output.batch.old_logp).high
    one = torch.ones_like(band)
    edges = (*output.interval, band, CANONICAL_HIGH * one)
    return torch.stack(
        [(output.ratio - edge).abs() > 1e-4 * edge.clamp(min=1) for edge in edges]
    ).all(0)


def _as_double(batch: TokenBatch) -> TokenBatch:
    values = {k: v.double() for k, v in vars(batch).items() if isinstance(v, Tensor)}
    return replace(batch, **values)


def _taken(loss: PolicyLoss, batch: TokenBatch) -> tuple[LossOutput, Tensor, dict[str, float]]:
    """The output, the gradient of logp and the diagnostics of a batch."""
    logp = batch.logp.clone().requires_grad_()
    output = loss(replace(batch, logp=logp))
    output.loss.backward()
    diagnostics = LossDiagnostics(logp.device)
    diagnostics.update(output)
    assert logp.grad is not None
    return output, logp.grad, diagnostics.metrics()


def _errors(
    ours: tuple[LossOutput, Tensor, dict[str, float]],
    exact: tuple[LossOutput, Tensor, dict[str, float]],
    real: Tensor,
) -> dict[str, float]:
    (mine, slope, metrics), (theirs, true_slope, true_metrics) = ours, exact
    bounds = [
        float(((a.double().cpu() - b).abs() / b.clamp(min=1e-3))[real].max())
        for a, b in zip(mine.interval, theirs.interval, strict=True)
    ]
    return {
        "loss": abs(mine.loss.item() - theirs.loss.item()) / abs(theirs.loss.item()),
        "gradient": float((slope.double().cpu() - true_slope).norm() / true_slope.norm()),
        "bounds": max(bounds),
        "diagnostics": max(
            abs(metrics[k] - true_metrics[k]) / max(1e-3, abs(true_metrics[k])) for k in metrics
        ),
    }


def compiled_bounds(lab: Lab) -> Mapping[str, Figure]:
    """Band-KL fused by torch.compile: the same bounds, and the share of a loss that they take."""
    batch = (random_batch(8, 64) if lab.tiny else random_batch(1024, 1024)).to(lab.device)
    compiled = Compiled(BOUNDS)
    eager_low, eager_high = BOUNDS(batch.old_logp)
    low, high = compiled(batch.old_logp)
    gap = max(float((high / eager_high - 1).abs().max()), float((low - eager_low).abs().max()))
    eager_s = lab.seconds(lambda: BOUNDS(batch.old_logp), 10)
    compiled_s = lab.seconds(lambda: compiled(batch.old_logp), 10)

    def whole(bounds: Bounds) -> float:
        loss = PolicyLoss(TokenRatio(), Clip(bounds), SequenceMeanTokenMean(), ReferenceKL(0.001))
        return lab.seconds(lambda: _backward(loss, batch), 10)

    return {
        "gap": Figure(gap, at_most=1e-4),
        "tokens": Figure(batch.mask.numel()),
        "eager_ms": Figure(1e3 * eager_s),
        "compiled_ms": Figure(1e3 * compiled_s),
        "loss_with_band_over_fixed": Figure(whole(BOUNDS) / whole(Fixed(0.2, 0.2))),
        "loss_with_compiled_over_fixed": Figure(
            whole(compiled) / whole(Fixed(0.2, 0.2)), at_most=lab.bar(1.5)
        ),
    }


def _backward(loss: PolicyLoss, batch: TokenBatch) -> None:
    logp = batch.logp.detach().requires_grad_()
    loss(replace(batch, logp=logp)).loss.backward()
