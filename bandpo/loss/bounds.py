"""Trust regions: intervals [low, high] of the ratio that depend on the old policy alone."""

from __future__ import annotations

import dataclasses
import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bandpo.cpu import separate_compile_caches
from bandpo.errors import UserError
from bandpo.loss.debug import require_logprobs
from bandpo.loss.divergence import KL, ChiSquared, Divergence, TotalVariation, one_minus_exp
from bandpo.loss.radius import Radius
from bandpo.loss.ratio import behaviour_logp
from bandpo.types import TokenBatch

BLOCK = 1 << 16  # tokens


class Interval(NamedTuple):
    """Ratio bounds with low <= 1 <= high, both of old_logp's shape, at least float32, no grad."""

    low: Tensor
    high: Tensor


class Bounds(ABC):
    """A rule that gives each token its ratio interval, with the contract of `Interval`."""

    @abstractmethod
    def __call__(self, old_logp: Tensor) -> Interval:
        """The interval for log π_old(token) of any shape, in nats."""

    def for_batch(self, batch: TokenBatch) -> Bounds:
        """These bounds with all that they need of the batch besides old_logp; by default self."""
        return self


def misplaced(owner: object, name: str, wanted: str, part: Any) -> UserError:
    """The error for a part of a loss that is none of the kind that belongs in its place."""
    given = f"the class {part.__name__}; call it" if isinstance(part, type) else repr(part)
    return UserError(f"{type(owner).__name__}: {name} must be {wanted}, not {given}")


def require_bounds(owner: object, **parts: Any) -> None:
    """Raises UserError, which names the owner's class and the argument, for what is no `Bounds`."""
    for name, part in parts.items():
        if isinstance(part, Bounds):
            continue
        wanted = (
            "a rule (bandpo.loss.Bounds), such as BandKL(0.05), or Fixed(0.2, 0.2) for canonical "
            "clipping (in YAML `_target_: bandpo.loss.Fixed`)"
        )
        raise misplaced(owner, name, wanted, part)


@dataclass(frozen=True)
class Fixed(Bounds):
    """Canonical clipping, [1 − eps_low, 1 + eps_high]; Clip-Higher with eps_high > eps_low.

    Both may be tensors that broadcast to old_logp, of which `low` is at least 0.
    Source: Proximal Policy Optimization Algorithms, equation 7; DAPO, section 3.1. Raises
    UserError unless 0 <= eps_low <= 1 and eps_high >= 0.
    """

    eps_low: float | Tensor
    eps_high: float | Tensor

    def __post_init__(self) -> None:
        if isinstance(self.eps_low, Tensor) or isinstance(self.eps_high, Tensor):
            return
        if not (0 <= self.eps_low <= 1 and self.eps_high >= 0):
            raise UserError(f"{self}: needs 0 <= eps_low <= 1 and eps_high >= 0.")

    def __call__(self, old_logp: Tensor) -> Interval:
        one = torch.ones_like(_log_probability(old_logp))
        return Interval((one * (1 - self.eps_low)).clamp(min=0), one * (1 + self.eps_high))


@dataclass(frozen=True)
class FixedLog(Bounds):
    """Fixed bounds of the log-ratio, [e^−low, e^high], both in nats.

    Source: Geometric-Mean Policy Optimization (arXiv 2507.20673), where both are 0.4. Raises
    UserError for negative bounds.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (self.low >= 0 and self.high >= 0):
            raise UserError(f"{self}: low and high must not be negative.")

    def __call__(self, old_logp: Tensor) -> Interval:
        one = torch.ones_like(_log_probability(old_logp))
        return Interval(one * math.exp(-self.low), one * math.exp(self.high))


@dataclass(frozen=True)
class Band(Bounds):
    """The extreme ratios of a token over all policies with D_f(π ‖ π_old) <= delta.

    With p = π_old(token), the roots r of p·f(r) + (1−p)·f((1−r·p)/(1−p)) = delta, or the edges 0
    and 1/p of the simplex where the divergence stays below delta. `delta` may be a number, a
    tensor that broadcasts to old_logp, or a `Radius`, resolved by `for_batch`.
    Source: BandPO, sections "The Band operator" and "Reduction to univariate optimization". Raises
    UserError for a radius that is not positive.
    """

    divergence: Divergence
    delta: float | Tensor | Radius

    def __post_init__(self) -> None:
        if not isinstance(self.divergence, Divergence):
            raise misplaced(self, "divergence", "a divergence, such as KL()", self.divergence)
        positive = isinstance(self.delta, int | float) and self.delta > 0
        if not (positive or isinstance(self.delta, Radius | Tensor)):
            raise UserError(f"{self}: delta must be positive; delta → 0 would freeze the policy.")

    def for_batch(self, batch: TokenBatch) -> Bounds:
        if isinstance(self.delta, Radius):
            return dataclasses.replace(self, delta=self.delta(batch))
        return self

    @torch.no_grad()
    def __call__(self, old_logp: Tensor) -> Interval:
        if isinstance(self.delta, Radius):
            raise ValueError(f"{self}: resolve the radius with for_batch(batch) first.")
        log_p = _log_probability(old_logp)
        delta = (log_p.new_ones(()) * self.delta).to(log_p.dtype)
        if torch.compiler.is_compiling() or not log_p.is_cpu:
            return self._solve(log_p, delta)
        # The solver holds a dozen temporaries: in blocks they fit a processor's cache.
        interval = Interval(log_p.new_empty(log_p.shape), log_p.new_empty(log_p.shape))
        log_ps, lows, highs = (tensor.flatten().split(BLOCK) for tensor in (log_p, *interval))
        deltas = delta.expand_as(log_p).flatten().split(BLOCK) if delta.ndim else repeat(delta)
        for low, high, *block in zip(lows, highs, log_ps, deltas, strict=False):
            low[:], high[:] = self._solve(*block)
        return interval

    def _solve(self, log_p: Tensor, delta: Tensor) -> Interval:
        p, c = log_p.exp(), one_minus_exp(-log_p)
        lower = self.divergence.log_shrink(p, c, delta)
        upper = self.divergence.log_shrink(c, p, delta)
        return Interval(lower.exp(), 1 + (c / p) * one_minus_exp(-upper))


@dataclass(frozen=True)
class BandKL(Band):
    """`Band` with KL(π_old ‖ π), the paper's main method (delta = 0.05)."""

    divergence: Divergence = field(default=KL(), init=False)


@dataclass(frozen=True)
class BandTV(Band):
    """`Band` with total variation: 1 ± delta/p within the simplex."""

    divergence: Divergence = field(default=TotalVariation(), init=False)


@dataclass(frozen=True)
class BandChi2(Band):
    """`Band` with Pearson χ²: 1 ± sqrt(delta·(1−p)/p) within the simplex."""

    divergence: Divergence = field(default=ChiSquared(), init=False)


@dataclass(frozen=True)
class DynamicAdaptive(Bounds):
    """DCPO's dynamic-adaptive clipping.

    With p = π_old(token): low = ½ + ½·sqrt(max(1 − 4·eps_low/p, 0)), high = ½ + ½·sqrt(1 +
    4·eps_high/p). It leaves the simplex as p → 1 and never lets a ratio fall below ½. Both eps may
    be tensors that broadcast to old_logp.
    Source: DCPO: Dynamic Clipping Policy Optimization, section 3. Raises UserError for eps < 0.
    """

    eps_low: float | Tensor
    eps_high: float | Tensor

    def __post_init__(self) -> None:
        if isinstance(self.eps_low, Tensor) or isinstance(self.eps_high, Tensor):
            return
        if self.eps_low < 0 or self.eps_high < 0:
            raise UserError(f"{self}: eps_low and eps_high must not be negative.")

    def __call__(self, old_logp: Tensor) -> Interval:
        p = _log_probability(old_logp).exp()
        low = 0.5 + 0.5 * (1 - 4 * self.eps_low / p).clamp(min=0).sqrt()
        high = 0.5 + 0.5 * (1 + 4 * self.eps_high / p).sqrt()
        return Interval(low, high)


@dataclass(frozen=True)
class Union(Bounds):
    """The smallest interval that holds both: low = min, high = max (BandPO's "relaxed" variant)."""

    first: Bounds
    second: Bounds

    def __post_init__(self) -> None:
        require_bounds(self, first=self.first, second=self.second)

    def for_batch(self, batch: TokenBatch) -> Bounds:
        return Union(self.first.for_batch(batch), self.second.for_batch(batch))

    def __call__(self, old_logp: Tensor) -> Interval:
        first, second = self.first(old_logp), self.second(old_logp)
        return Interval(
            torch.minimum(first.low, second.low), torch.maximum(first.high, second.high)
        )


@dataclass(frozen=True)
class Capped(Bounds):
    """The inner bounds with `high` at most max_ratio, as in BandPO's release (10).

    Raises UserError for max_ratio < 1.
    """

    inner: Bounds
    max_ratio: float

    def __post_init__(self) -> None:
        require_bounds(self, inner=self.inner)
        if not self.max_ratio >= 1:
            raise UserError(f"{self}: max_ratio must be at least 1.")

    def for_batch(self, batch: TokenBatch) -> Bounds:
        return Capped(self.inner.for_batch(batch), self.max_ratio)

    def __call__(self, old_logp: Tensor) -> Interval:
        low, high = self.inner(old_logp)
        return Interval(low, high.clamp(max=self.max_ratio))


@dataclass(frozen=True)
class Mixed(Bounds):
    """The lower bound of one rule with the upper bound of another.

    `Mixed(low=Fixed(0.2, 0.2), high=BandKL(0.05))` frees rare tokens upwards only, so that
    negative samples cannot push the tail down faster than canonical clipping lets them.
    """

    low: Bounds
    high: Bounds

    def __post_init__(self) -> None:
        require_bounds(self, low=self.low, high=self.high)

    def for_batch(self, batch: TokenBatch) -> Bounds:
        return Mixed(self.low.for_batch(batch), self.high.for_batch(batch))

    def __call__(self, old_logp: Tensor) -> Interval:
        return Interval(self.low(old_logp).low, self.high(old_logp).high)


@dataclass(frozen=True)
class BySign(Bounds):
    """One rule for tokens of advantage A >= 0, another for those of A < 0, resolved by `for_batch`.

    For weights that are truncated on both sides (TOPR's); `Mixed` will do for `Clip`, which looks
    at the upper bound where A > 0 and at the lower one where A < 0.
    """

    positive: Bounds
    negative: Bounds
    is_negative: Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        require_bounds(self, positive=self.positive, negative=self.negative)

    def for_batch(self, batch: TokenBatch) -> Bounds:
        positive, negative = self.positive.for_batch(batch), self.negative.for_batch(batch)
        return BySign(positive, negative, batch.advantages < 0)

    def __call__(self, old_logp: Tensor) -> Interval:
        if self.is_negative is None:
            raise ValueError("BySign: resolve the advantages with for_batch(batch) first.")
        sides = zip(self.positive(old_logp), self.negative(old_logp), strict=True)
        return Interval(*(torch.where(self.is_negative, below, above) for above, below in sides))


@dataclass(frozen=True)
class OfBehaviour(Bounds):
    """The inner bounds around the policy that sampled (`behaviour_logp`) in place of π_old.

    For `BehaviourRatio`. Resolved by `for_batch`.
    """

    inner: Bounds
    logp: Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        require_bounds(self, inner=self.inner)

    def for_batch(self, batch: TokenBatch) -> Bounds:
        logp = behaviour_logp(batch)
        return OfBehaviour(
            self.inner.for_batch(dataclasses.replace(batch, old_logp=logp)), logp.detach()
        )

    def __call__(self, old_logp: Tensor) -> Interval:
        if self.logp is None:
            raise ValueError("OfBehaviour: resolve the policy with for_batch(batch) first.")
        return self.inner(self.logp)


@dataclass(frozen=True)
class Compiled(Bounds):
    """The inner bounds fused by torch.compile: one kernel where eager mode starts forty.

    Needs a C++ compiler on a CPU or Triton on a GPU, and seconds for the first batch.
    """

    inner: Bounds

    def __post_init__(self) -> None:
        require_bounds(self, inner=self.inner)

    def for_batch(self, batch: TokenBatch) -> Bounds:
        return Compiled(self.inner.for_batch(batch))

    def __call__(self, old_logp: Tensor) -> Interval:
        return _compiler()(self.inner, old_logp)


@functools.cache
def _compiler() -> Callable[[Bounds, Tensor], Interval]:
    """Made at first use: torch.compile imports for longer than all of bandpo.loss."""
    separate_compile_caches()
    return torch.compile(lambda bounds, old_logp: bounds(old_logp))


def _log_probability(old_logp: Tensor) -> Tensor:
    """old_logp without gradient in at least float32, within what exp() can represent there.

    The floor keeps 1/p finite; rounding in a log-softmax may leave values a hair above 0. Raises
    UserError for others within `debugging`.
    """
    if not torch.compiler.is_compiling():
        require_logprobs("bounds", old_logp)
    dtype = torch.promote_types(old_logp.dtype, torch.float32)
    floor = math.ceil(math.log(torch.finfo(dtype).tiny))
    return old_logp.detach().to(dtype).clamp(floor, 0.0)
