"""Whether a part of a loss can be computed from what another framework knows of a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bandpo.errors import UserError
from bandpo.loss.contracts import check_contracts
from bandpo.loss.statistic import asking_parts
from bandpo.types import TokenBatch


def require_fit(
    framework: str,
    part: Any,
    compute: Callable[[TokenBatch], Tensor],
    *reported: str,
    has_step: bool = True,
) -> None:
    """Tries bounds, a surrogate or a loss on one token, before a framework's first rollout.

    `compute` applies the part to a batch; `reported` are the optional tensors of TokenBatch that
    the framework fills, `has_step` whether it does `step`. Raises UserError where bounds or a
    divergence break their contract, and for a part that asks for a statistic of the whole batch,
    for another tensor or for the step.
    """
    check_contracts(part)
    if asking := asking_parts(part):
        names = ", ".join(type(one).__name__ for one in asking)
        raise UserError(
            f"{names}: a statistic of the whole optimizer batch is needed before the update, for "
            f"which {framework} makes no pass; `bandpo train` does."
        )
    token = torch.full((1, 1), -1.0)
    required = dict.fromkeys(("logp", "old_logp", "advantages", *reported), token)
    batch = TokenBatch(**required, mask=torch.ones(1, 1))
    try:
        first, late = (compute(replace(batch, step=step)) for step in (0, 10**9))
    except ValueError as error:
        raise UserError(f"{framework} does not report it: {error}") from error
    if not has_step and not torch.equal(first, late):
        raise UserError(f"{part} follows the training step, which {framework} does not report.")
