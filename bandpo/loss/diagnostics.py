"""The effect of a trust region on a batch, by old probability and the advantage's sign."""

from __future__ import annotations

import functools
import itertools
import math

import torch
from torch import Tensor

from bandpo.loss.bounds import BandKL, Capped
from bandpo.loss.policy import LossOutput
from bandpo.loss.ratio import LOG_RATIO_LIMIT
from bandpo.types import TokenBatch

# Edges of the bins of old probability: decades where canonical clipping leaves least room.
EDGES = (1e-4, 1e-3, 1e-2, 0.1, 0.5, 0.9, 0.99)
BINS = tuple(f"{low:g}_{high:g}" for low, high in itertools.pairwise((0.0, *EDGES, 1.0)))
SIGNS = ("negative", "zero", "positive")
RARE_BINS = EDGES.index(0.1) + 1
# Whatever a run's method, its ratios are compared with these two upper bounds too.
CANONICAL_HIGH = 1.2
BAND = Capped(BandKL(0.05), 10.0)
BLOCK = 1 << 14

# Sums over the tokens of each bin and sign. A value that a batch may lack comes with the number of
# tokens that have it (`COUNTED_BY`).
STATISTICS = (
    *("tokens", "binding_high", "binding_low", "mass", "mass_removed", "low", "high"),
    *("above_high", "above_canonical", "above_band", "ratio", "kl_old"),
    *("kl_ref", "kl_ref_tokens", "entropy", "entropy_tokens", "mismatch", "mismatch_tokens"),
    *("mismatch_kl", "mismatch_k3", "mismatch_masked"),
)
COUNTED_BY = {
    "kl_ref": "kl_ref_tokens",
    "entropy": "entropy_tokens",
    **dict.fromkeys(
        ("mismatch", "mismatch_kl", "mismatch_k3", "mismatch_masked"), "mismatch_tokens"
    ),
}


class LossDiagnostics:
    """Sums and maxima over the tokens of any number of micro-batches.

    `sums` [bins, signs, statistics], float64, is additive: an all-reduce with SUM over ranks makes
    it that of the whole batch, exactly so for counts. `maxima` [3], the largest ratio, the largest
    |log π_old − log π_rollout| and the largest Σ_t (log π_old − log π_rollout) of a sequence, takes
    an all-reduce with MAX. Only `metrics` and `table` read values on the host.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        shape = (len(BINS), len(SIGNS), len(STATISTICS))
        self.sums = torch.zeros(shape, dtype=torch.float64, device=device)
        self.maxima = torch.zeros(3, dtype=torch.float64, device=device)
        self.maxima[2] = -math.inf

    @torch.no_grad()
    def update(self, output: LossOutput) -> None:
        """Adds the unmasked tokens of one micro-batch."""
        batch, columns = output.batch, _columns(output)
        values = torch.stack([columns[name].flatten() for name in STATISTICS])
        cell, mask = cell_index(batch).flatten(), batch.mask.flatten()
        self.sums += _sum_by_cell(values, cell, mask).view_as(self.sums)
        of_sequences = -(columns["mismatch_kl"] * batch.mask).sum(-1)
        largest = ((output.ratio * batch.mask), columns["mismatch"], of_sequences)
        extremes = torch.stack([values.amax() for values in largest])
        self.maxima = torch.maximum(self.maxima, extremes.double())

    def merge(self, other: LossDiagnostics) -> None:
        """Adds the tokens of `other`."""
        self.sums += other.sums
        self.maxima = torch.maximum(self.maxima, other.maxima)

    def table(self) -> list[dict[str, str | float]]:
        """One row per bin × sign that has tokens: counts, clipped shares, bounds, entropy."""
        rows: list[dict[str, str | float]] = []
        for i, j in itertools.product(range(len(BINS)), range(len(SIGNS))):
            sums = _named(self.sums[i, j])
            if sums["tokens"] > 0:
                rows.append({"bin": BINS[i], "advantage": SIGNS[j], **_means(sums)})
        return rows

    def metrics(self) -> dict[str, float]:
        """Means over all tokens seen, under the names of metrics.jsonl; empty without tokens.

        `clip/high_frac` and `clip/low_frac` count tokens whose gradient the bounds removed,
        `clip/dual_frac` those that the dual clip did, all as shares of all tokens (of the bin's
        tokens in `clip/bin_*`). `reach/*` shows whether a wider bound can matter in this run: of
        the rare tokens (p < 0.1) with positive advantage, the shares whose ratio passed the
        method's upper bound, the canonical 1.2, and Band-KL's bound for δ = 0.05 capped at 10.
        """
        total = _named(self.sums.sum((0, 1)))
        if total["tokens"] == 0:
            return {}
        positive = SIGNS.index("positive")
        rare = _named(self.sums[:RARE_BINS, positive].sum(0))
        means = _means(total)
        ratio_max, mismatch_max, sequence_max = self.maxima.tolist()
        metrics = {
            "ratio/mean": means["ratio"],
            "ratio/max": ratio_max,
            **_clip_metrics("clip/", self.sums.sum(0)),
            "bounds/low_mean": means["low"],
            "bounds/high_mean": means["high"],
            "policy/kl_old": means["kl_old"],
            "reach/rare_frac": rare["tokens"] / total["tokens"],
            "reach/above_high_frac": _share(rare["above_high"], rare["tokens"]),
            "reach/above_canonical_frac": _share(rare["above_canonical"], rare["tokens"]),
            "reach/above_band_frac": _share(rare["above_band"], rare["tokens"]),
        }
        if "kl_ref" in means:
            metrics["policy/kl_ref"] = means["kl_ref"]
        if "entropy" in means:
            metrics["policy/entropy"] = means["entropy"]
        if "mismatch" in means:
            metrics["mismatch/logprob_abs_mean"] = means["mismatch"]
            metrics["mismatch/logprob_abs_max"] = mismatch_max
            metrics["mismatch/kl"] = means["mismatch_kl"]
            metrics["mismatch/k3"] = means["mismatch_k3"]
            metrics["mismatch/masked_frac"] = means["mismatch_masked"]
            metrics["mismatch/sequence_weight_max"] = math.exp(min(sequence_max, LOG_RATIO_LIMIT))
        for i, name in enumerate(BINS):
            metrics[f"clip/bin_{name}/count"] = _named(self.sums[i].sum(0))["tokens"]
            metrics |= _clip_metrics(f"clip/bin_{name}/", self.sums[i])
        return metrics


def cell_index(batch: TokenBatch) -> Tensor:
    """The cell [B, T] of each token: index of its bin · 3 + index of its sign."""
    bins = torch.bucketize(batch.old_logp.float(), _log_edges(batch.old_logp.device), right=True)
    return bins * len(SIGNS) + batch.advantages.sign().long() + 1


@functools.cache
def _log_edges(device: torch.device) -> Tensor:
    return torch.tensor([math.log(edge) for edge in EDGES], device=device)


def _columns(output: LossOutput) -> dict[str, Tensor]:
    """The statistics of each token, [B, T]; the caller skips masked positions."""
    batch, interval = output.batch, output.interval
    ones, zeros = torch.ones_like(batch.mask), torch.zeros_like(batch.mask)
    binding = output.binding_high | output.binding_low
    mass = batch.advantages.abs()
    log_ratio = (batch.logp - batch.old_logp).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    entropy = batch.new_entropy if batch.entropy is None else batch.entropy
    rollout_logp = batch.rollout_logp
    log_weight = zeros if rollout_logp is None else batch.old_logp - rollout_logp
    limited = log_weight.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return {
        "tokens": ones,
        "binding_high": output.binding_high,
        "binding_low": output.binding_low,
        "mass": mass,
        "mass_removed": mass * binding,
        "low": interval.low,
        "high": interval.high,
        "above_high": output.ratio > interval.high,
        "above_canonical": output.ratio > CANONICAL_HIGH,
        "above_band": output.ratio > BAND(batch.old_logp).high,
        "ratio": output.ratio,
        "kl_old": torch.expm1(log_ratio) - log_ratio,  # k3: tokens are samples of the old policy
        "kl_ref": zeros if output.reference_kl is None else output.reference_kl,
        "kl_ref_tokens": zeros if output.reference_kl is None else ones,
        "entropy": zeros if entropy is None else entropy,
        "entropy_tokens": zeros if entropy is None else ones,
        "mismatch": log_weight.abs(),
        "mismatch_tokens": zeros if rollout_logp is None else ones,
        "mismatch_kl": -log_weight,  # of π_rollout from π_old, as k1: tokens are its samples
        "mismatch_k3": torch.expm1(limited) - limited,
        "mismatch_masked": zeros if output.correction is None else output.correction == 0,
    }


def _sum_by_cell(values: Tensor, cell: Tensor, mask: Tensor) -> Tensor:
    """Sums values [statistics, tokens] over the unmasked tokens of each cell, in float64.

    By matmuls with one-hot rows: a scatter-add on a GPU sums in another order every time. The
    blocks fit a processor's cache.
    """
    cells = torch.arange(len(BINS) * len(SIGNS), device=cell.device)[:, None]
    sums = values.new_zeros(len(cells), len(values), dtype=torch.float64)
    blocks = (tensor.split(BLOCK, dim=-1) for tensor in (values, cell, mask))
    for block, block_cell, block_mask in zip(*blocks, strict=True):
        member = (block_cell == cells) & block_mask.bool()
        sums += member.double() @ block.double().T
    return sums


def _named(sums: Tensor) -> dict[str, float]:
    return dict(zip(STATISTICS, sums.tolist(), strict=True))


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0


def _means(sums: dict[str, float]) -> dict[str, float]:
    """The token count and the means of all other statistics that were present."""
    means = {"tokens": sums["tokens"]}
    for name in STATISTICS[1:]:
        tokens = sums[COUNTED_BY.get(name, "tokens")]
        if tokens > 0 and not name.endswith("_tokens"):
            means[name] = sums[name] / tokens
    return means


def _clip_metrics(prefix: str, sums: Tensor) -> dict[str, float]:
    """Clip fractions from sums [signs, statistics]; empty without tokens."""
    total = _named(sums.sum(0))
    if total["tokens"] == 0:
        return {}
    removed = {sign: _named(sums[i]) for i, sign in enumerate(SIGNS)}
    return {
        f"{prefix}high_frac": removed["positive"]["binding_high"] / total["tokens"],
        f"{prefix}low_frac": removed["negative"]["binding_low"] / total["tokens"],
        f"{prefix}dual_frac": removed["negative"]["binding_high"] / total["tokens"],
        f"{prefix}mass_removed_frac": _share(total["mass_removed"], total["mass"]),
    }
