"""The order of the prompts: seeded epochs whose position is part of a checkpoint."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import Any

from bandpo.data.prompts import prompt_fingerprint
from bandpo.data.sampling.history import History
from bandpo.data.sampling.streams import shuffled
from bandpo.errors import UserError
from bandpo.types import Prompt

_SAME = {
    "fingerprint": "training data or its prompts",
    "tokens": "tokens of the prompts",
    "seed": "seed",
}


class Sampler(ABC):
    """Draws the prompts of each step from a fixed set, the same on every rank."""

    def __init__(self, prompts: Sequence[Prompt], seed: int) -> None:
        """Raises `UserError` without prompts, ValueError if two have the same problem id."""
        if not prompts:
            raise UserError("there are no prompts to train on")
        self._by_id = {prompt.problem.id: prompt for prompt in prompts}
        if len(self._by_id) != len(prompts):
            raise ValueError("two prompts have the same problem id")
        self.seed = seed
        self.fingerprint = self._fingerprint()
        self.tokens = prompt_fingerprint(prompts)

    def __len__(self) -> int:
        return len(self._by_id)

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """All of them, in the order they were given in."""
        return tuple(self._by_id.values())

    def require(self, n: int) -> None:
        """Raises `UserError` where there are not `n` different prompts for a step."""
        if n > len(self):
            raise UserError(
                f"{n} prompts per step were asked for, but the training data has only {len(self)}"
            )

    @abstractmethod
    def next(self, n: int, without: Collection[str] = ()) -> list[Prompt]:
        """The next `n` prompts, all different; raises as `require` does.

        Problems with the ids `without` are skipped; fewer prompts may then be left.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """The state, seed and fingerprints of data and tokens, as plain JSON values."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where `state` was saved; raises `UserError` if data or seed have changed."""

    def state(self, history: History, id: str) -> str:
        """The state of a problem in the step after a history."""
        return "active"

    def take_notes(self) -> list[str]:
        """Messages for the user about the draws since the last call."""
        return []

    def _identity(self) -> dict[str, Any]:
        return {"seed": self.seed, "fingerprint": self.fingerprint, "tokens": self.tokens}

    def _require_same(self, state: dict[str, Any]) -> None:
        """Checkpoints of earlier versions lack the prompts' tokens."""
        for key, what in _SAME.items():
            if state.get(key, getattr(self, key)) != getattr(self, key):
                raise UserError(
                    f"cannot continue: the {what} changed since the checkpoint "
                    f"({key} {state[key]} then, {getattr(self, key)} now)"
                )

    def _fingerprint(self) -> str:
        """A hash of the prompts and reference answers, whatever the order of the file."""
        digest = hashlib.sha256()
        for id in sorted(self._by_id):
            prompt = self._by_id[id]
            for part in (id, prompt.text, prompt.problem.answer):
                digest.update(hashlib.sha256(part.encode()).digest())
        return digest.hexdigest()[:16]


class PromptSampler(Sampler):
    """Endless shuffled epochs over all prompts.

    The rest of an epoch that is too short for a request is skipped, so that no request holds a
    prompt twice, which would draw the same samples twice.
    """

    def __init__(self, prompts: Sequence[Prompt], seed: int) -> None:
        super().__init__(prompts, seed)
        self._start_epoch(0)

    def next(self, n: int, without: Collection[str] = ()) -> list[Prompt]:
        """As `Sampler.next`."""
        self.require(n)
        n = min(n, len(self._by_id.keys() - set(without)))
        if len(self._left(without)) < n:
            self._start_epoch(self.epoch + 1)
        places = self._left(without)[:n]
        if places:
            self.position = places[-1] + 1
        return [self._by_id[self._order[place]] for place in places]

    def _left(self, without: Collection[str]) -> list[int]:
        """The places that are left in this epoch."""
        places = range(self.position, len(self))
        return [place for place in places if self._order[place] not in without]

    def state_dict(self) -> dict[str, Any]:
        """Epoch and position in it, beside what identifies the data."""
        return {"epoch": self.epoch, "position": self.position, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As `Sampler.load_state_dict`."""
        self._require_same(state)
        self._start_epoch(state["epoch"])
        self.position = state["position"]

    def _start_epoch(self, epoch: int) -> None:
        self.epoch, self.position = epoch, 0
        self._order = shuffled(self._by_id, f"{self.seed}/{epoch}")
