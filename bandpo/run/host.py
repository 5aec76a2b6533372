"""What a process keeps from one run to the next: its place among the ranks, and its engine."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from typing import Any

from hydra.utils import instantiate

from bandpo.config.schema import Config, longest_sequence
from bandpo.cpu import usable_cores
from bandpo.model.source import ModelSource
from bandpo.ranks.collectives import Ranks
from bandpo.ranks.neighbours import Neighbours
from bandpo.rollout.context import context_length
from bandpo.rollout.engine import RolloutEngine


def served_length(config: Config, model: ModelSource) -> int:
    """Tokens of the longest sequence that an engine must take: what settings and model allow."""
    limit = context_length(model.config(config.model.trust_remote_code))
    longest = longest_sequence(config)
    return longest if limit is None else min(longest, limit)


class Host:
    """This process among the ranks, with the rollout engine that successive runs share.

    An engine takes seconds to minutes to start (compilation, CUDA graphs, its cache), which a study
    of many short runs would pay again and again. Nothing of a run stays in it: its weights
    are replaced at the first sync, its prefix cache is dropped with them, and every request brings
    its own seed.
    """

    def __init__(self) -> None:
        self._open = ExitStack()
        self.ranks = self._open.enter_context(Ranks())
        self._open.callback(self._end_engine)
        # Left first: ranks part while all that they hold is still alive.
        self._open.enter_context(Neighbours(self.ranks))
        self._engine: RolloutEngine | None = None
        self._made_with: dict[str, Any] = {}

    def engine(self, config: Config, model: ModelSource) -> RolloutEngine:
        """The engine for a run: the one at hand if it is what the run needs, else a new one.

        Collective over the ranks, and to be called after the learner is built: vLLM would make a
        process group of size 1, which DeepSpeed rejects.
        """
        needed = {
            "model_path": model.path,
            "dtype": config.model.dtype,
            "trust_remote_code": config.model.trust_remote_code,
            "max_model_len": served_length(config, model),
            "threads": max(1, usable_cores() // self.ranks.size),
        }
        made_with = {"engine": config.rollout.engine, **needed}
        if self._engine is None or made_with != self._made_with:
            self._end_engine()
            engine: RolloutEngine = instantiate(config.rollout.engine, seed=config.seed, **needed)
            self._engine, self._made_with = engine, made_with
        return self._engine

    def bury_engine(self) -> None:
        """Drops an engine that has died, so that the next one is new."""
        with suppress(Exception):  # what is dead may not be able to close either
            self._end_engine()
        self._engine = None

    def _end_engine(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

    def close(self) -> None:
        """Ends the engine and leaves the ranks."""
        self._open.close()
