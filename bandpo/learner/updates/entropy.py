"""The entropy bonus of a run's loss, from rollout to rollout."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bandpo.loss.entropy import EntropyBonus, EntropyFloor
from bandpo.ranks.collectives import Ranks

FILE = "entropy.json"
"""Of a checkpoint: the state of a floor's coefficient."""


class EntropyControl:
    """Gives a loss its entropy bonus at the coefficient of the moment; it has none without one."""

    def __init__(self, loss: Any, ranks: Ranks) -> None:
        bonus = getattr(loss, "entropy", None)
        self._bonus = bonus if isinstance(bonus, EntropyBonus) else None
        self._ranks = ranks
        self._floor: EntropyFloor | None = None
        if self._bonus is not None and self._bonus.floor is not None:
            self._floor = EntropyFloor.of(self._bonus)

    def applied(self, loss: Any) -> Any:
        """The loss of the next update."""
        if self._floor is None:
            return loss
        return dataclasses.replace(loss, entropy=self._floor.current)

    def observed(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """The metrics of the rollout that these are of, after which the coefficient follows.

        Collective. It stays where no update was taken, and nobody knows the entropy.
        """
        if self._floor is None:
            coefficient = self._bonus.coefficient if self._bonus else 0.0
            return {"entropy/coef": coefficient} if coefficient else {}
        used = self._floor.current.coefficient
        entropy = self._ranks.gather(metrics.get("policy/entropy"))[0]
        if entropy is not None:
            self._floor = self._floor.after(entropy)
        return {"entropy/coef": used}

    def save(self, folder: Path) -> None:
        """Writes a floor's state into a checkpoint, on the first rank."""
        if self._floor is not None and self._ranks.is_first:
            state = {"raised": self._floor.raised, "is_below": self._floor.is_below}
            (folder / FILE).write_text(json.dumps(state), encoding="utf-8")

    def load(self, folder: Path) -> None:
        """Restores a floor's state from a checkpoint."""
        if self._floor is not None:
            state = json.loads((folder / FILE).read_text(encoding="utf-8"))
            self._floor = dataclasses.replace(self._floor, **state)
