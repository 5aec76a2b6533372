"""A mode in which losses and bounds refuse values that are no log-probabilities.

    with debugging():
        loss(batch)

It costs a look at every value, and on a GPU a wait for it: a run's first step is taken in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from bandpo.types import check_logprobs

_debugging = False


@contextmanager
def debugging(on: bool = True) -> Iterator[None]:
    """Within, `PolicyLoss` checks its batch and bounds check old_logp; they raise UserError."""
    global _debugging
    before, _debugging = _debugging, on
    try:
        yield
    finally:
        _debugging = before


def is_debugging() -> bool:
    """Whether this is within `debugging`."""
    return _debugging


def require_logprobs(name: str, values: Tensor) -> None:
    """Raises UserError within `debugging` where values are NaN, or above 0 beyond rounding."""
    if _debugging:
        check_logprobs(name, values)
