"""The result of an update, and the metrics of a step's updates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean


@dataclass(frozen=True)
class UpdateResult:
    """The result of one optimizer update, the same on every rank.

    An update whose loss or gradient is nonfinite is skipped: weights, optimizer state and warm-up
    stay as they are, and `nonfinite` names the samples, of all ranks, with nonfinite values. It may
    be empty: a gradient can overflow without them. `pruned_share` is that of
    the minibatch that was not computed (`learner.prune`).
    """

    loss: float
    grad_norm: float
    lr: float
    padding_frac: float = 0.0
    imbalance: float = 0.0
    skipped: bool = False
    nonfinite: tuple[str, ...] = ()
    pruned_share: float = 0.0


def update_metrics(updates: Sequence[UpdateResult | None]) -> dict[str, float]:
    """Means over the updates that were taken, and the numbers of taken and skipped ones."""
    made = [update for update in updates if update is not None]
    taken = [update for update in made if not update.skipped]
    counts = {"learn/updates": float(len(taken)), "learn/skipped": float(len(made) - len(taken))}
    if not taken:
        return counts
    pruned = fmean(update.pruned_share for update in taken)
    return {
        **counts,
        "loss/policy": fmean(update.loss for update in taken),
        "grad/norm": fmean(update.grad_norm for update in taken),
        "learn/lr": taken[-1].lr,
        "learn/padding_frac": fmean(update.padding_frac for update in taken),
        "learn/imbalance": fmean(update.imbalance for update in taken),
        **({"learn/pruned_frac": pruned} if pruned else {}),
    }
