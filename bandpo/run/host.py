"""The host of successive runs in one process: its place among the ranks, and its engine."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch

from bandpo.config.schema import Config, engine_dtype, longest_sequence
from bandpo.cpu import usable_cores
from bandpo.environment import hardware
from bandpo.model.architecture import shape_of
from bandpo.model.source import ModelSource
from bandpo.planning.fit import fitted, fitted_without_gpu
from bandpo.planning.gpus import GIB
from bandpo.ranks.collectives import Ranks
from bandpo.ranks.neighbours import Neighbours
from bandpo.rollout.context import context_length
from bandpo.rollout.engine import EngineSpec, RolloutEngine, start_engine


def served_length(config: Config, model: ModelSource) -> int:
    """Tokens of the longest sequence, within the settings and the model's context."""
    limit = context_length(model.config(config.model.trust_remote_code))
    longest = longest_sequence(config)
    return longest if limit is None else min(longest, limit)


def samples_at_a_time(config: Config) -> int | None:
    """The most completions that a run asks its engine for at once; an evaluation asks for any."""
    rollout = config.rollout
    return None if config.eval.benchmarks else rollout.prompts_per_step * rollout.group_size


def fitted_here(config: Config, ranks: Ranks) -> Config:
    """The configuration with what it leaves to the ranks' memory; collective."""
    if ranks.device.type != "cuda":
        if config.model.gradient_checkpointing is not None:
            return config
        here = hardware()["memory_gib"]
        return fitted_without_gpu(config, shape_of(config.model), here, ranks.size)
    own = torch.cuda.get_device_properties(ranks.device).total_memory / GIB
    return fitted(config, shape_of(config.model), min(ranks.gather(own)), ranks.size)


class Host:
    """This process among the ranks, with the rollout engine that successive runs share.

    An engine takes seconds to minutes to start (compilation, CUDA graphs, its cache), which a study
    of many short runs would pay for each of them. Nothing of a run stays in it: the first sync
    replaces its weights and drops its prefix cache, and every request brings its own seed.
    """

    def __init__(self) -> None:
        self._open = ExitStack()
        self.ranks = self._open.enter_context(Ranks())
        self._open.callback(self.discard_engine)
        # Closed first: ranks part while all that they hold is still alive.
        self._open.enter_context(Neighbours(self.ranks))
        self._engine: RolloutEngine | None = None
        self._made_with: tuple[dict[str, Any], EngineSpec] | None = None

    def engine(self, config: Config, model: ModelSource) -> RolloutEngine:
        """The engine for a run: the present one if it has the settings needed, else a new one.

        Collective. Call it after the learner is built: vLLM would make a process group of size 1,
        which DeepSpeed rejects.
        """
        spec = EngineSpec(
            model_path=model.path,
            dtype=engine_dtype(config),
            seed=config.seed,
            trust_remote_code=config.model.trust_remote_code,
            chat_template=config.data.chat_template,
            max_model_len=served_length(config, model),
            samples=samples_at_a_time(config),
            threads=max(1, usable_cores() // self.ranks.size),
            ranks=self.ranks,
        )
        made_with = config.rollout.engine, replace(spec, seed=0)
        if self._engine is None or made_with != self._made_with:
            self.discard_engine()
            self._engine = start_engine(config.rollout.engine, spec)
            self._made_with = made_with
        return self._engine

    def discard_engine(self) -> None:
        """Ends the engine, so that the next run gets a new one."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

    def close(self) -> None:
        """Ends the engine and leaves the ranks."""
        self._open.close()
