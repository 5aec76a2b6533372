"""The contracts of bounds and divergences, tried on a grid: a class of one's own may break them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from bandpo.errors import UserError
from bandpo.loss.bounds import Bounds, Compiled, Interval
from bandpo.loss.divergence import Divergence
from bandpo.types import TokenBatch

# Old probabilities, [3, 5]: rare tokens, the middle, and 1 itself.
PROBABILITIES = (
    (1e-30, 1e-12, 1e-8, 1e-6, 1e-4),
    (1e-3, 1e-2, 0.05, 0.1, 0.25),
    (0.5, 0.75, 0.9, 0.999, 1.0),
)
ROUNDING = 1e-5  # relative; bounds are formed in float32
_TAILS = (75, 36, 18, 9, 4)  # limits are read off f at u = 10^±75, 10^±150, 10^±300, or nearer


def check_contracts(value: Any) -> None:
    """Tries every `Bounds` and `Divergence` inside a loss, however they are composed.

    Raises UserError for the first that breaks its contract, with its class and the property.
    """
    for part in _parts(value, set()):
        if isinstance(part, Divergence):
            check_divergence(part)
        elif isinstance(part, Bounds):
            check_bounds(part)


def _parts(value: Any, seen: set[int]) -> Iterator[Any]:
    """The value and all that its attributes hold, inner parts first."""
    if id(value) in seen or isinstance(value, Tensor | type | ModuleType):
        return
    seen.add(id(value))
    for part in _inside(value):
        yield from _parts(part, seen)
    yield value


def _inside(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, list | tuple):
        return list(value)
    if dataclasses.is_dataclass(value):
        return [getattr(value, field.name) for field in dataclasses.fields(value)]
    return list(getattr(value, "__dict__", {}).values())


def check_bounds(bounds: Bounds) -> None:
    """Raises UserError unless the rule keeps the contract of `Interval` over a grid of p.

    low <= 1 <= high, both finite, of old_logp's shape, at least float32, without gradient.
    """
    if isinstance(bounds, Compiled):  # its inner bounds are tried; to compile them takes seconds
        return
    p = torch.tensor(PROBABILITIES)
    old_logp = p.log()
    one, entropy = torch.ones_like(p), torch.linspace(0, 2, p.numel()).reshape(p.shape)
    batch = TokenBatch(old_logp, old_logp, one, one, entropy=entropy, step=1, pass_rate=one / 2)
    name = name_of(bounds)
    try:
        interval = bounds.for_batch(batch)(old_logp)
    except UserError:
        raise
    except Exception as error:  # whatever a user's class raises
        raise UserError(f"{name} raised {type(error).__name__}: {error}") from error
    if not isinstance(interval, Interval):
        raise UserError(
            f"{name} must return an Interval(low, high) of tensors, not {str(interval)[:60]}"
        )
    for side, bound in interval._asdict().items():
        if problem := _faulty(bound, p.shape):
            raise UserError(f"{name} breaks the contract of its Interval: {side} {problem}")
    low, high = interval.low.double(), interval.high.double()
    outside = ~((low <= 1 + ROUNDING) & (high >= 1 - ROUNDING))
    if outside.any():
        at = outside.flatten().nonzero()[0]
        raise UserError(
            f"{name} breaks low <= 1 <= high: where p = {p.flatten()[at].item():g} its interval is "
            f"[{low.flatten()[at].item():.4g}, {high.flatten()[at].item():.4g}], which the old "
            "policy itself (ratio 1) is outside of"
        )


def _faulty(bound: Any, shape: torch.Size) -> str:
    """The fault of a bound as a tensor; empty where there is none."""
    if not isinstance(bound, Tensor):
        return f"is {bound!r}, not a tensor"
    if bound.shape != shape:
        return f"has shape {tuple(bound.shape)} for old_logp of shape {tuple(shape)}"
    if bound.dtype not in (torch.float32, torch.float64):
        return f"is of {bound.dtype}, not of float32 or float64"
    if bound.requires_grad:
        return "has a gradient; bounds are constants, which depend on the old policy alone"
    if not bound.isfinite().all():
        at = (~bound.isfinite()).flatten().nonzero()[0]
        p = torch.tensor(PROBABILITIES).flatten()[at].item()
        return f"is {bound.flatten()[at].item()} where p = {p:g}, not finite"
    return ""


def check_divergence(divergence: Divergence) -> None:
    """Raises UserError unless f(1) = 0, f is finite and convex, and the rest follows from f.

    `derivative` is f', `at_zero` is f(0), `growth` is lim f(u)/u for u → ∞, and a `log_shrink` of
    the class's own solves the equation of `bandpo.loss.divergence`.
    """
    name = name_of(divergence)
    try:
        problem = _broken(divergence)
    except UserError:
        raise
    except Exception as error:  # whatever a user's class raises
        raise UserError(f"{name} raised {type(error).__name__}: {error}") from error
    if problem:
        raise UserError(f"{name} is no f-divergence: {problem}")


@torch.no_grad()
def _broken(divergence: Divergence) -> str:
    """The first property of an f-divergence that it lacks; empty where it has them all."""
    f = divergence.f
    at_one = f(torch.ones((), dtype=torch.float64)).item()
    if not abs(at_one) < 1e-9:
        return f"f(1) must be 0, and is {at_one:g}"
    u = torch.logspace(-4, 4, 161, dtype=torch.float64)
    value = f(u)
    if not value.isfinite().all():
        at = u[~value.isfinite()][0].item()
        return f"f({at:g}) is {f(torch.tensor(at, dtype=torch.float64)).item()}, not finite"
    chord, middle = (value[1:] + value[:-1]) / 2, f((u[1:] + u[:-1]) / 2)
    slack = 1e-9 * (1 + chord.abs())
    if (bulges := middle > chord + slack).any():
        return f"f is not convex near u = {u[:-1][bulges][0].item():g}"
    step = 1e-6 * u
    slope = (f(u + step) - f(u - step)) / (2 * step)
    wrong = (slope - divergence.derivative(u)).abs() > 1e-3 * (1 + slope.abs())
    if (wrong := wrong & ((u - 1).abs() > 1e-3)).any():  # f may have a kink at 1, as TV has
        at = u[wrong][0]
        return (
            f"derivative({at.item():g}) is {divergence.derivative(at).item():.4g}, where f rises "
            f"by {slope[wrong][0].item():.4g} per u"
        )
    if problem := _wrong_limit(
        "at_zero", "f(u) for u → 0", divergence.at_zero, _tail(lambda u: f(1 / u))
    ):
        return problem
    if problem := _wrong_limit(
        "growth", "f(u)/u for u → ∞", divergence.growth, _tail(lambda u: f(u) / u)
    ):
        return problem
    return _wrong_root(divergence)


def _tail(function: Callable[[Tensor], Tensor]) -> list[float]:
    """The function at three large u whose exponents double, as large as do not overflow in it."""
    values: list[float] = []
    for exponent in _TAILS:
        u = 10.0 ** torch.tensor([exponent, 2 * exponent, 4 * exponent], dtype=torch.float64)
        values = function(u).tolist()
        if all(map(math.isfinite, values)):
            break
    return values


def _wrong_limit(key: str, meaning: str, claimed: float, values: list[float]) -> str:
    """The message where values, at exponents that double, tend to something other than is claimed.

    Those of a logarithm double their differences, and a power's grow faster; a difference that
    falls behind that belongs to a finite limit.
    """
    first, second, last = values
    before, after = second - first, last - second
    diverges = not math.isfinite(last) or (after > 1e-6 and after > 1.9999 * before)
    reached = abs(after) <= 1e-6 * (1 + abs(last))
    if math.isinf(claimed) != diverges:
        found = "grows without end" if diverges else f"tends to {last:.4g}"
        return f"{key} must be the limit of {meaning}, which {found}, and is {claimed:g}"
    if not diverges and reached and abs(claimed - last) > 1e-3 * (1 + abs(last)):
        return f"{key} must be the limit of {meaning}, {last:.4g}, and is {claimed:.4g}"
    return ""


def _wrong_root(divergence: Divergence) -> str:
    """The message where a closed form of the class's own misses the root of h(x) = δ."""
    if type(divergence).log_shrink is Divergence.log_shrink:
        return ""
    a = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    for delta in (1e-3, 0.05, 0.5):
        radius = torch.full_like(a, delta)
        x = divergence.log_shrink(a, 1 - a, radius).exp()
        reached = a * divergence.f(x) + (1 - a) * divergence.f(1 + a / (1 - a) * (1 - x))
        inside = x > 1e-9  # beyond it the region reaches the simplex's edge
        missed = inside & ((reached - delta).abs() > 1e-3 * delta)
        missed |= ~((x >= 0) & (x <= 1))
        if missed.any():
            at = missed.nonzero()[0]
            return (
                f"log_shrink gives x = {x[at].item():.4g} for a = {a[at].item():.2f}, δ = "
                f"{delta:g}, where the divergence is {reached[at].item():.4g}"
            )
    return ""


def name_of(part: object) -> str:
    """The class of a part, as `_target_` names it."""
    return f"{type(part).__module__}.{type(part).__qualname__}"
