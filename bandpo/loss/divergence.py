"""f-divergences and the one equation that turns a divergence radius into ratio bounds.

Moving probability into or out of a token changes two parts of the simplex: the token (weight p)
and all other tokens together (weight c = 1 − p), which keep their proportions. One of the two
shrinks by a factor x in [0, 1], the other grows by what the first gives up. With a the weight of
the part that shrinks and b that of the part that grows (a + b = 1), the divergence is

    h(x) = a·f(x) + b·f(1 + (a/b)·(1 − x)),

which falls from h(0) to h(1) = 0. A trust region of radius δ allows every x with h(x) <= δ: the
smallest is the root of h(x) = δ, or 0 where h(0) <= δ and the region reaches the simplex's edge.
Both Band bounds are this root: the lower with (a, b) = (p, c), the upper with (a, b) = (c, p).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from bandpo.errors import UserError

RAREST = 1e-8


class Divergence(ABC):
    """D_f(π ‖ π_old) = Σ π_old · f(π / π_old) for a convex f with f(1) = 0.

    A new divergence is `f`, its `derivative`, `at_zero` = f(0) and `growth` = lim f(u)/u for
    u → ∞; it may override `log_shrink` where a closed form exists.
    """

    at_zero: float
    growth: float

    @abstractmethod
    def f(self, u: Tensor) -> Tensor:
        """The generator at u > 0, float64."""

    @abstractmethod
    def derivative(self, u: Tensor) -> Tensor:
        """f'(u) at u > 0, float64."""

    def log_shrink(self, a: Tensor, b: Tensor, delta: Tensor) -> Tensor:
        """ln x <= 0 for the smallest factor x that the radius δ allows, −inf at the simplex edge.

        `a` and `b` are of one shape, at least 0, and sum to 1; `delta` > 0 broadcasts to them.
        The logarithm keeps full precision for x near 0 and near 1 alike. Here: bisection over
        logit(x) and Newton steps kept within the last bracket, in float64, since f near 1 cancels.
        """
        return _bracketed_root(self, a, b, delta)


def binary_divergence(divergence: Divergence, logp: Tensor, old_logp: Tensor) -> Tensor:
    """D_f of (token, all others) between two policies, q·f(p/q) + (1 − q)·f((1 − p)/(1 − q)).

    p = π(token) and q = π_old(token) from their logarithms, of one shape; float64. A log-softmax
    rounds likely tokens to 1, as if all others were impossible: both stay within [1e-8, 1 − 1e-8].
    """
    p, q = (x.double().exp().clamp(RAREST, 1 - RAREST) for x in (logp, old_logp))
    return q * divergence.f(p / q) + (1 - q) * divergence.f((1 - p) / (1 - q))


@dataclass(frozen=True)
class KL(Divergence):
    """KL(π_old ‖ π), f(u) = −ln u + u − 1: the trust region of TRPO and of BandPO's main results.

    Source: BandPO, section "Generic numerical solver"; it has no closed form.
    """

    at_zero = math.inf
    growth = 1.0

    def f(self, u: Tensor) -> Tensor:
        return u - 1 - u.log()

    def derivative(self, u: Tensor) -> Tensor:
        return 1 - 1 / u

    def log_shrink(self, a: Tensor, b: Tensor, delta: Tensor) -> Tensor:
        """−s for the root s > 0 of F(s) = a·s − b·ln(1 + w) − δ, w = (a/b)·(1 − e^−s).

        Third-order Householder steps, each of which raises the error to the fourth power, from
        the root's expansion in sqrt(δ), whose second term is fitted so that one step leaves 3e-6
        for δ in [1e-4, 5]: float32 needs no other. F' = w/(1 + w); g below is e^−s/(1 − e^−s).
        """
        a, b = a.clamp(min=1e-30), b.clamp(min=1e-30)  # keeps a/b finite, changes no result
        k = a / b
        s = (2 * delta / k).sqrt() + 0.54 * delta / a + 0.26 * delta
        for _ in range(1 if s.dtype == torch.float32 else 2):
            u = one_minus_exp(s)
            w, g = k * u, 1 / u - 1
            residual = torch.addcmul(a * s, b, torch.log1p(w), value=-1) - delta
            secant = residual / w
            newton, m = residual + secant, secant * g
            curvature = torch.addcmul(newton, residual, g, value=2)
            numerator = torch.addcmul(newton, newton, m, value=-1 / 2)
            denominator = torch.addcmul(1 - m, m, curvature, value=-1 / 6)
            s = torch.addcdiv(s, numerator, denominator, value=-1)
        # KL never saturates, and a subnormal e^−s would take thirty times as long.
        return -s.clamp(max=math.floor(-math.log(torch.finfo(s.dtype).tiny)))


@dataclass(frozen=True)
class ReverseKL(Divergence):
    """KL(π ‖ π_old), f(u) = u·ln u − u + 1."""

    at_zero = 1.0
    growth = math.inf

    def f(self, u: Tensor) -> Tensor:
        return torch.xlogy(u, u) - u + 1

    def derivative(self, u: Tensor) -> Tensor:
        return u.log()


@dataclass(frozen=True)
class TotalVariation(Divergence):
    """TV, f(u) = ½·|u − 1|, with the closed form x = 1 − δ/a.

    Source: BandPO, proposition "Closed-form Band bounds for TV and Pearson χ²".
    """

    at_zero = 0.5
    growth = 0.5

    def f(self, u: Tensor) -> Tensor:
        return (u - 1).abs() / 2

    def derivative(self, u: Tensor) -> Tensor:
        return (u - 1).sign() / 2

    def log_shrink(self, a: Tensor, b: Tensor, delta: Tensor) -> Tensor:
        """ln(1 − δ/a), saturating at a <= δ."""
        return torch.log1p(-(delta / a).clamp(max=1))


@dataclass(frozen=True)
class ChiSquared(Divergence):
    """Pearson χ², f(u) = (u − 1)², with the closed form x = 1 − sqrt(δ·b/a).

    Source: BandPO, proposition "Closed-form Band bounds for TV and Pearson χ²".
    """

    at_zero = 1.0
    growth = math.inf

    def f(self, u: Tensor) -> Tensor:
        return (u - 1).square()

    def derivative(self, u: Tensor) -> Tensor:
        return 2 * (u - 1)

    def log_shrink(self, a: Tensor, b: Tensor, delta: Tensor) -> Tensor:
        """ln(1 − sqrt(δ·b/a)), saturating at a <= δ·b."""
        return torch.log1p(-(delta * (b / a)).sqrt().clamp(max=1))


@dataclass(frozen=True)
class SquaredHellinger(Divergence):
    """Squared Hellinger without the factor ½, f(u) = (√u − 1)²; at most 2.

    Two parts make it an angle: √(pq) + √((1−p)(1−q)) = cos γ = 1 − δ/2, hence the closed form
    √x = cos γ − sqrt(b/a)·sin γ.
    """

    at_zero = 1.0
    growth = 1.0

    def f(self, u: Tensor) -> Tensor:
        return (u.sqrt() - 1).square()

    def derivative(self, u: Tensor) -> Tensor:
        return 1 - u.rsqrt()

    def log_shrink(self, a: Tensor, b: Tensor, delta: Tensor) -> Tensor:
        """2·ln(1 − δ/2 − sqrt(b/a)·sin γ), saturating at a <= sin² γ; no bound beyond δ = 2."""
        delta = delta.clamp(max=2)
        sine = (delta * (1 - delta / 4)).sqrt()
        return 2 * torch.log1p(-(delta / 2 + (b / a).sqrt() * sine).clamp(max=1))


@dataclass(frozen=True)
class JensenShannon(Divergence):
    """Jensen–Shannon, f(u) = ½·(u·ln(2u/(1+u)) + ln(2/(1+u))); at most ln 2."""

    at_zero = math.log(2) / 2
    growth = math.log(2) / 2

    def f(self, u: Tensor) -> Tensor:
        return (torch.xlogy(u, 2 * u / (1 + u)) + (2 / (1 + u)).log()) / 2

    def derivative(self, u: Tensor) -> Tensor:
        return (2 * u / (1 + u)).log() / 2


@dataclass(frozen=True)
class AlphaDivergence(Divergence):
    """Amari's α-divergence, f(u) = (u^α − α·u + α − 1) / (α·(α − 1)), α not 0 or 1.

    α → 0 is KL(π_old ‖ π), α → 1 is KL(π ‖ π_old), α = 2 is χ²/2 and α = ½ is twice the squared
    Hellinger divergence. Raises UserError for α in {0, 1}.
    """

    alpha: float = 0.5

    def __post_init__(self) -> None:
        if self.alpha in (0.0, 1.0):
            raise UserError("AlphaDivergence: alpha 0 is KL and alpha 1 is ReverseKL; use those.")

    @property
    def at_zero(self) -> float:  # type: ignore[override]
        """f(0) = 1/α for α > 0."""
        return 1 / self.alpha if self.alpha > 0 else math.inf

    @property
    def growth(self) -> float:  # type: ignore[override]
        """lim f(u)/u = 1/(1 − α) for α < 1."""
        return 1 / (1 - self.alpha) if self.alpha < 1 else math.inf

    def f(self, u: Tensor) -> Tensor:
        scale = self.alpha * (self.alpha - 1)
        return (u**self.alpha - self.alpha * (u - 1) - 1) / scale

    def derivative(self, u: Tensor) -> Tensor:
        return (u ** (self.alpha - 1) - 1) / (self.alpha - 1)


def one_minus_exp(s: Tensor) -> Tensor:
    """1 − e^−s for s >= 0, with all digits also where s is small."""
    s = s.clamp(max=40)  # e^−40 is nothing beside 1 in any dtype, and slow to underflow
    if not torch.compiler.is_compiling():
        return torch.expm1(-s).abs()  # not −0 for 0
    # torch.compile turns expm1(x) into exp(x) − 1 on a CPU, which leaves few digits of a small x.
    series = s * (1 - s / 2 * (1 - s / 3 * (1 - s / 4 * (1 - s / 5))))
    return torch.where(s < 0.1, series.abs(), 1 - (-s).exp())


# Bisection leaves logit(x) within 1400/2^24 < 1e-4; each Newton step squares the error.
BISECTION_STEPS, POLISH_STEPS, LOGIT_LIMIT = 24, 2, 700.0


def _bracketed_root(divergence: Divergence, a: Tensor, b: Tensor, delta: Tensor) -> Tensor:
    """Solves h(x) = δ for ln x over z = logit(1 − x), in which h rises (see the module)."""
    shrinking, growing = a.double().clamp(min=1e-300), b.double().clamp(min=1e-300)
    odds, target = shrinking / growing, delta.double()
    low, high = torch.full_like(odds, -LOGIT_LIMIT), torch.full_like(odds, LOGIT_LIMIT)
    for _ in range(BISECTION_STEPS):
        z = (low + high) / 2
        grown = 1 + odds * torch.sigmoid(z)
        value = shrinking * divergence.f(torch.sigmoid(-z)) + growing * divergence.f(grown)
        low, high = torch.where(value <= target, z, low), torch.where(value <= target, high, z)
    z = (low + high) / 2
    for _ in range(POLISH_STEPS):
        x, grown = torch.sigmoid(-z), 1 + odds * torch.sigmoid(z)
        value = shrinking * divergence.f(x) + growing * divergence.f(grown)
        slope = divergence.derivative(grown) - divergence.derivative(x)
        slope = shrinking * slope * x * torch.sigmoid(z)
        z = torch.where(slope > 0, z - (value - target) / slope, z).clamp(low, high)
    # At the edge all mass is in one part, where f(1/b) ≈ growth/b may overflow.
    at_one = torch.where(growing < 1e-100, divergence.growth, growing * divergence.f(1 / growing))
    edge = shrinking * divergence.at_zero + at_one
    y = torch.where(edge <= target, -math.inf, logsigmoid(-z))
    # A part without mass cannot take any when f grows faster than linearly.
    return torch.where((b == 0) & math.isinf(divergence.growth), 0.0, y).to(a.dtype)
