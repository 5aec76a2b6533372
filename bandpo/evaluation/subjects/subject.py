"""A model that is evaluated, with the prompts that it is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bandpo.evaluation.evaluate import Task
from bandpo.rollout.engine import EngineSpec
from bandpo.types import Group


@dataclass(frozen=True)
class Subject:
    """A model as an evaluation needs it; everything that a user can have got wrong is checked.

    `folder` is that of the results, `spec` the engine's without ranks. `identity` identifies the
    weights in the settings of the samples, which may take seconds. `reference` is a problem's own
    answer, to try the reward.
    """

    folder: Path
    tasks: tuple[Task, ...]
    spec: EngineSpec
    identity: Callable[[], Mapping[str, Any]]
    reference: Group
    notes: tuple[str, ...] = ()
