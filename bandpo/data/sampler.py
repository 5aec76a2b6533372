"""Which prompts come next: seeded epochs whose position is part of a checkpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from bandpo.errors import UserError
from bandpo.types import Prompt


class PromptSampler:
    """Endless shuffled epochs over a fixed set of prompts.

    The order of an epoch sorts prompts by sha256(seed, epoch, problem id), so it depends on
    nothing else: not on the order of the data file, the library or the machine. What is left of
    an epoch and too short for a request is skipped, hence no request holds a prompt twice, which
    would draw the same samples twice.
    """

    def __init__(self, prompts: Sequence[Prompt], seed: int) -> None:
        """Raises `UserError` without prompts, ValueError if two have the same problem id."""
        if not prompts:
            raise UserError("there are no prompts to train on")
        self._by_id = {prompt.problem.id: prompt for prompt in prompts}
        if len(self._by_id) != len(prompts):
            raise ValueError("two prompts have the same problem id")
        self.seed = seed
        self.fingerprint = self._fingerprint()
        self._start_epoch(0)

    def __len__(self) -> int:
        return len(self._by_id)

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """All that it draws from."""
        return tuple(self._by_id.values())

    def require(self, n: int) -> None:
        """Raises `UserError` where there are not `n` different prompts for a step."""
        if n > len(self):
            raise UserError(
                f"{n} prompts a step were asked for, but the training data has only {len(self)}"
            )

    def next(self, n: int) -> list[Prompt]:
        """The next `n` prompts, all different; raises as `require` does."""
        self.require(n)
        if self.position + n > len(self):
            self._start_epoch(self.epoch + 1)
        ids = self._order[self.position : self.position + n]
        self.position += n
        return [self._by_id[id] for id in ids]

    def state_dict(self) -> dict[str, Any]:
        """Position, epoch, seed and the fingerprint of the data, as plain JSON values."""
        return {
            "epoch": self.epoch,
            "position": self.position,
            "seed": self.seed,
            "fingerprint": self.fingerprint,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where `state` was taken; raises `UserError` if data or seed have changed."""
        for key, what in (("fingerprint", "training data or its prompts"), ("seed", "seed")):
            if state[key] != getattr(self, key):
                raise UserError(
                    f"cannot continue: the {what} changed since the checkpoint "
                    f"({key} {state[key]} then, {getattr(self, key)} now)"
                )
        self._start_epoch(state["epoch"])
        self.position = state["position"]

    def _start_epoch(self, epoch: int) -> None:
        self.epoch, self.position = epoch, 0
        self._order = sorted(
            self._by_id,
            key=lambda id: hashlib.sha256(f"{self.seed}/{epoch}/{id}".encode()).digest(),
        )

    def _fingerprint(self) -> str:
        """A hash of what the model is asked and judged by, whatever the order of the file."""
        digest = hashlib.sha256()
        for id in sorted(self._by_id):
            prompt = self._by_id[id]
            for part in (id, prompt.text, prompt.problem.answer):
                digest.update(hashlib.sha256(part.encode()).digest())
        return digest.hexdigest()[:16]
