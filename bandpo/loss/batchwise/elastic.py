"""Trust regions that are wider for tokens of large advantage and of prompts half solved."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from bandpo.errors import UserError
from bandpo.loss.bounds import Bounds, Interval, require_bounds
from bandpo.types import TokenBatch

SCALES = ("delta", "eps_low", "eps_high")
"""The fields of a rule that an `Elastic` around it multiplies."""


@dataclass(frozen=True)
class Elastic(Bounds):
    """Any bounds with δ, or eps_low and eps_high, times a factor >= 1 of the token's own.

    factor = (1 + a·min(|A|, A_max)/A_max)·(1 + b·4·p̂·(1 − p̂)), with a = `by_advantage`, A_max =
    `largest`, b = `by_pass_rate` and p̂ the group's pass rate: more room where a sample says more,
    and where a prompt is neither solved nor hopeless. With a = b = 0 they are the inner bounds, bit
    for bit. In the spirit of ETR (arXiv 2601.03723), whose constants are not public to us: rule and
    constants are ours. Raises UserError for numbers out of range and for inner bounds with neither
    δ nor eps, and ValueError for a batch without pass rates where b > 0.
    """

    inner: Bounds
    by_advantage: float = 0.5
    by_pass_rate: float = 0.5
    largest: float = 2.0

    def __post_init__(self) -> None:
        require_bounds(self, inner=self.inner)
        if min(self.by_advantage, self.by_pass_rate) < 0 or not self.largest > 0:
            raise UserError(f"{self}: needs by_advantage >= 0, by_pass_rate >= 0 and largest > 0.")
        _scaled(self.inner, None)

    def factor(self, batch: TokenBatch) -> Tensor:
        """The factor of each token, [B, T]."""
        size = batch.advantages.abs().clamp(max=self.largest) / self.largest
        factor = 1 + self.by_advantage * size
        if self.by_pass_rate == 0:
            return factor
        if batch.pass_rate is None:
            raise ValueError("Elastic needs TokenBatch.pass_rate, the group's share of successes.")
        return factor * (1 + self.by_pass_rate * 4 * batch.pass_rate * (1 - batch.pass_rate))

    def for_batch(self, batch: TokenBatch) -> Bounds:
        inner = self.inner.for_batch(batch)
        if self.by_advantage == self.by_pass_rate == 0:
            return inner
        return _scaled(inner, self.factor(batch).detach())

    def __call__(self, old_logp: Tensor) -> Interval:
        raise ValueError("Elastic: resolve the advantages with for_batch(batch) first.")


def _scaled(bounds: Bounds, factor: Tensor | None) -> Bounds:
    """The bounds with every δ and eps inside times the factor; None only tries whether that goes.

    Raises UserError for bounds that hold neither one nor other bounds.
    """
    rule: Any = bounds  # a dataclass, or one without fields
    known = dataclasses.fields(rule) if dataclasses.is_dataclass(rule) else ()
    fields = {f.name: getattr(rule, f.name) for f in known if f.init}
    changed = {k: _scaled(v, factor) for k, v in fields.items() if isinstance(v, Bounds)}
    scales = {k: v for k, v in fields.items() if k in SCALES}
    if not changed and not scales:
        raise UserError(
            f"Elastic: {type(bounds).__name__} has neither {', '.join(SCALES)} nor bounds inside "
            "that have: its radius cannot be scaled"
        )
    if factor is None:
        return bounds
    scaled: Bounds = dataclasses.replace(
        rule, **changed, **{k: factor * scale for k, scale in scales.items()}
    )
    return scaled
