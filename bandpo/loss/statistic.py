"""Statistics of a whole optimizer batch that a part of a loss may ask for before the update.

A part sees one micro-batch of one rank. What depends on the others (a quantile, a mean, a share)
must not be computed from that: loss and gradient would change with the split. Such a part has

    needs_batch_statistic = True
    statistic(batch) -> Statistic          of a micro-batch, under the weights before the update
    with_statistic(statistic) -> part      for the update, given that of the whole batch

and the learner makes a pass for it over all samples, of all ranks, before those of the update. A
part whose statistic reads log-probabilities through the differences logp − old_logp alone says so
by `statistic_of_ratios = True`: samples on policy then take no pass, and have 0 for both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import reduce
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor

from bandpo.types import TokenBatch

Loss = TypeVar("Loss")


class Statistic(Protocol):
    """A value of some tokens that can be joined with that of others, in any order.

    Ranks exchange it, so it can be pickled; tensors in it are on the CPU.
    """

    def merge(self, other: Self) -> Self: ...


@dataclasses.dataclass(frozen=True)
class Total:
    """Sums over tokens, in float64 on the CPU; any shape."""

    value: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", self.value.detach().double().cpu())

    def merge(self, other: Total) -> Total:
        """The sums over both."""
        return Total(self.value + other.value)


@dataclasses.dataclass(frozen=True)
class Values:
    """The values of all tokens, ascending, [N] on the CPU: whatever the split, the same tensor."""

    value: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", self.value.detach().flatten().cpu().sort().values)

    def merge(self, other: Values) -> Values:
        """Those of both."""
        return Values(torch.cat([self.value, other.value]))


class AsksForStatistic(Protocol):
    """A part of a loss that depends on the whole optimizer batch.

    `statistic` gets a batch as the loss does: in at least float32, 0 where masked. `with_statistic`
    leaves the part itself as it is.
    """

    needs_batch_statistic: bool

    def statistic(self, batch: TokenBatch) -> Statistic: ...

    def with_statistic(self, statistic: Any) -> Any: ...


def asking_parts(loss: Any) -> list[AsksForStatistic]:
    """The parts of a loss, and of its parts that are dataclasses, that ask for a statistic."""
    return list(_asking(loss))


def is_of_ratios(part: AsksForStatistic) -> bool:
    """Whether a part's statistic reads log-probabilities through their differences alone."""
    return bool(getattr(part, "statistic_of_ratios", False))


def merged(statistics: Sequence[Sequence[Statistic]]) -> list[Statistic]:
    """Of several lists, one statistic of each asking part, the list of the merged ones."""
    return [reduce(lambda a, b: a.merge(b), same) for same in zip(*statistics, strict=True)]


def with_statistics(loss: Loss, statistics: Sequence[Statistic]) -> Loss:
    """The loss whose asking parts are given these statistics, in the order of `asking_parts`."""
    given = iter(statistics)
    informed: Loss = _informed(loss, given)
    assert next(given, None) is None
    return informed


def _asks(part: Any) -> bool:
    return bool(getattr(part, "needs_batch_statistic", False)) and not isinstance(part, type)


def _inside(part: Any) -> dict[str, Any]:
    """The fields of a part that is a dataclass and no class."""
    if not dataclasses.is_dataclass(part) or isinstance(part, type):
        return {}
    return {f.name: getattr(part, f.name) for f in dataclasses.fields(part) if f.init}


def _asking(part: Any) -> Iterator[AsksForStatistic]:
    for inner in _inside(part).values():
        yield from _asking(inner)
    if _asks(part):
        yield part


def _informed(part: Any, given: Iterator[Statistic]) -> Any:
    changed = {
        name: new
        for name, inner in _inside(part).items()
        if (new := _informed(inner, given)) is not inner
    }
    if changed:
        part = dataclasses.replace(part, **changed)
    return part.with_statistic(next(given)) if _asks(part) else part
