"""Sums over the passes of one update."""

from __future__ import annotations

import torch

from bandpo.loss import LossDiagnostics, LossOutput


class Tally:
    """Loss, metrics and outputs of an update's passes.

    They are the learner's only when the update was taken: one that is skipped or started again
    leaves no trace.
    """

    def __init__(self, device: torch.device, keep: bool) -> None:
        self.loss = torch.zeros((), device=device)
        self.diagnostics = LossDiagnostics(device)
        self.outputs: list[LossOutput] = []
        self._keep = keep

    def add(self, output: LossOutput, weightless: bool = False) -> None:
        """Adds a micro-batch; the loss of a weightless one is 0 or nonfinite."""
        self.loss += output.loss.detach()
        if weightless:
            return
        self.diagnostics.update(output)
        if self._keep:
            self.outputs.append(output)
