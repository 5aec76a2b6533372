"""The policy loss: ratio × bounds × surrogate, aggregated, with an optional reference KL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from bandpo.errors import UserError
from bandpo.loss.aggregate import Aggregate, batch_totals
from bandpo.loss.bounds import Bounds, Interval, misplaced
from bandpo.loss.contracts import check_contracts
from bandpo.loss.correction import Correction
from bandpo.loss.debug import is_debugging
from bandpo.loss.entropy import EntropyBonus
from bandpo.loss.ratio import LOG_RATIO_LIMIT, Ratio
from bandpo.loss.statistic import asking_parts, with_statistics
from bandpo.loss.surrogate import Surrogate, require_surrogate
from bandpo.loss.zero_advantage import vanishes_at_zero_advantage
from bandpo.types import BatchTotals, TokenBatch


def require_ratio(owner: object, part: Any) -> None:
    """Raises UserError, which names the owner's class, for what is no ratio."""
    if not callable(part) or isinstance(part, Bounds | type):
        raise misplaced(owner, "ratio", "a ratio, such as TokenRatio()", part)


class KLEstimator(Protocol):
    """A per-token estimate [B, T] of KL(π ‖ π_ref) from log π and log π_ref of sampled tokens.

    Source: Approximating KL Divergence (J. Schulman's note), which names k1, k2 and k3.
    """

    def __call__(self, logp: Tensor, ref_logp: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class K1:
    """log π − log π_ref: unbiased as a value; as a loss its expected gradient is zero."""

    def __call__(self, logp: Tensor, ref_logp: Tensor) -> Tensor:
        return logp - ref_logp


@dataclass(frozen=True)
class K2:
    """½·(log π − log π_ref)²: biased as a value; its gradient is unbiased for samples from π."""

    def __call__(self, logp: Tensor, ref_logp: Tensor) -> Tensor:
        return (logp - ref_logp).square() / 2


@dataclass(frozen=True)
class K3:
    """e^x − x − 1 with x = log π_ref − log π: unbiased, never negative, of low variance.

    As in GRPO (DeepSeekMath, equation 4) and BandPO's release, which clamps x to ±20 and the
    estimate to at most `limit`; beyond either a token has no gradient.
    """

    limit: float = 10.0

    def __call__(self, logp: Tensor, ref_logp: Tensor) -> Tensor:
        x = (ref_logp - logp).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
        return (x.exp() - x - 1).clamp(max=self.limit)


@dataclass(frozen=True)
class KLPlusChiSquared:
    """e^u − 1 + u²/2 with u = log π − log π_ref, whose gradient is that of KL + ½χ²(π ‖ π_ref).

    For samples from π the expected gradient of the value is E[(e^u + u)·∇log π], and so that of
    KL(π ‖ π_ref) + ½·Σ π_ref·(π/π_ref − 1)²; as a value it is biased, as `K2` is. u is clamped
    to ±20.
    Source: Correcting the Mythos of KL-Regularization: Direct Alignment without Overoptimization
    via Chi-Squared Preference Optimization (arXiv 2407.13399), whose regulariser this is the
    gradient of; the estimator is ours.
    """

    def __call__(self, logp: Tensor, ref_logp: Tensor) -> Tensor:
        u = (logp - ref_logp).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
        return u.expm1() + u.square() / 2


@dataclass(frozen=True)
class ReferenceKL:
    """coefficient × an estimate of KL(π ‖ π_ref), added to the loss of every token.

    A coefficient of 0 makes it inactive: no reference log-probabilities are needed. With a `ratio`
    each estimate counts r times, with gradient through r too: for samples of π_old, r·k3 has the
    gradient of the KL itself, which k3 alone has not, not even at r = 1.
    Source: DeepSeek-V3.2: Pushing the Frontier of Open Large Language Models (arXiv 2512.02556),
    "Unbiased KL Estimate". Raises UserError for a negative coefficient and for a ratio
    that is none.
    """

    coefficient: float
    estimator: KLEstimator = K3()
    ratio: Ratio | None = None

    def __post_init__(self) -> None:
        if self.coefficient < 0:
            raise UserError(f"{self}: coefficient must not be negative.")
        if self.ratio is not None:
            require_ratio(self, self.ratio)

    def __call__(self, batch: TokenBatch) -> Tensor:
        if batch.ref_logp is None:
            raise ValueError("A reference KL needs TokenBatch.ref_logp.")
        estimate = self.estimator(batch.logp, batch.ref_logp)
        return estimate if self.ratio is None else estimate * self.ratio(batch)


@dataclass(frozen=True)
class LossOutput:
    """The loss of a micro-batch and the per-token values for diagnostics, all [B, T].

    loss          scalar with gradient: this micro-batch's share of the optimizer batch's loss
    batch         the batch as the loss used it: float32 or float64, 0 where masked
    ratio         the importance ratio
    interval      the trust region
    binding_high  bool: gradient removed, the ratio is too large
    binding_low   bool: gradient removed, the ratio is too small
    reference_kl  the estimate of KL(π ‖ π_ref), or None without a reference
    correction    the weights for the gap between π_old and the policy that sampled, or None
    """

    loss: Tensor
    batch: TokenBatch
    ratio: Tensor
    interval: Interval
    binding_high: Tensor
    binding_low: Tensor
    reference_kl: Tensor | None = None
    correction: Tensor | None = None


@dataclass(frozen=True)
class PolicyLoss:
    """−Σ a·(correction·objective − β·KL + c·H) over a batch's tokens; a value, so methods compose.

    a is the aggregate's weight, times `TokenBatch.weight` where there is one.

    ratio         TokenRatio, SequenceRatio, TrajectoryRatio or BehaviourRatio
    surrogate     the objective under the trust region: Clip, Mask, DualClip, TruncatedWeight, …
    aggregate     TokenMean, SequenceMeanTokenMean, SequenceMeanTokenSum or ConstantNorm
    reference_kl  pulls towards a frozen reference policy
    correction    weights for the gap between the policy that sampled and the old one
    max_weight    truncated importance sampling, for samples of an older policy: an objective whose
                  importance weight w exceeds it counts max_weight/w of itself (IMPALA, section
                  4.1); w is the ratio, or the surrogate's weight (TruncatedWeight)
    entropy       rewards the entropy H of the policy at each token's position

    Raises UserError for max_weight < 1 and for parts in each other's places.
    """

    ratio: Ratio
    surrogate: Surrogate
    aggregate: Aggregate
    reference_kl: ReferenceKL | None = None
    correction: Correction | None = None
    max_weight: float | None = None
    entropy: EntropyBonus | None = None

    def __post_init__(self) -> None:
        require_ratio(self, self.ratio)
        require_surrogate(self, self.surrogate)
        if isinstance(self.aggregate, type) or not hasattr(self.aggregate, "weights"):
            raise misplaced(self, "aggregate", "an aggregate, such as TokenMean()", self.aggregate)
        if self.max_weight is not None and not self.max_weight >= 1:
            raise UserError(f"PolicyLoss: max_weight must be at least 1, got {self.max_weight}.")

    def check(self) -> None:
        """Raises UserError where bounds or a divergence inside break their contract."""
        check_contracts(self)

    @property
    def needs_reference(self) -> bool:
        """Whether batches must carry ref_logp."""
        return self.reference_kl is not None and self.reference_kl.coefficient > 0

    @property
    def needs_entropy_gradient(self) -> bool:
        """Whether the gradient passes through the batch's new_entropy (`has_entropy_gradient`)."""
        return self.entropy is not None and self.entropy.needs_entropy_gradient

    @property
    def vanishes_at_zero_advantage(self) -> bool:
        """Whether samples of advantage 0 have no gradient (`vanishes_at_zero_advantage`)."""
        parts = (self.ratio, self.surrogate, self.aggregate, self.correction)
        learns_anyway = self.needs_reference or self.needs_entropy_gradient
        return not learns_anyway and all(
            vanishes_at_zero_advantage(part) for part in parts if part is not None
        )

    def __call__(self, batch: TokenBatch, totals: BatchTotals | None = None) -> LossOutput:
        """The loss of `batch`, normalised by `totals`.

        `totals` counts the whole optimizer batch, over every rank and micro-batch: the losses of
        its micro-batches then sum to the loss of the batch, however it was split. Without totals
        the batch is taken to be the whole, of which parts then get the statistics they ask for
        (`bandpo.loss.statistic`). Computes in at least float32.
        """
        batch = batch.neutral()
        if is_debugging():
            batch.check()
        if totals is not None:
            return self._output(batch, totals)
        found = [part.statistic(batch) for part in asking_parts(self)]
        return with_statistics(self, found)._output(batch, batch_totals(batch.mask))

    def _output(self, batch: TokenBatch, totals: BatchTotals) -> LossOutput:
        ratio = self.ratio(batch)
        result = self.surrogate(ratio, batch)
        value = -result.objective
        correction = None if self.correction is None else self.correction(batch)
        if correction is not None:
            value = value * correction
        if self.max_weight is not None:
            weight = ratio if result.weight is None else result.weight
            value = value * (self.max_weight / weight.detach()).clamp(max=1.0)
        divergence = None
        if self.reference_kl is not None and self.needs_reference:
            divergence = self.reference_kl(batch)
            value = value + self.reference_kl.coefficient * divergence
        if self.entropy is not None and self.needs_entropy_gradient:
            value = value - self.entropy(batch)
        if batch.weight is not None:
            value = value * batch.weight
        return LossOutput(
            loss=(self.aggregate.weights(batch.mask, totals) * value).sum(),
            batch=batch,
            ratio=ratio.detach(),
            interval=result.interval,
            binding_high=result.binding_high,
            binding_low=result.binding_low,
            reference_kl=None if divergence is None else divergence.detach(),
            correction=None if correction is None else correction.detach(),
        )
