"""What a run takes on a cluster, and which settings would make it fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bandpo.config.schema import Config, longest_sequence
from bandpo.model.architecture import Shape
from bandpo.planning.gpus import Cluster
from bandpo.planning.memory import Memory, card_memory
from bandpo.planning.time import PROMPT_TOKENS, Rates, Workload, run_hours, step_seconds


@dataclass(frozen=True)
class Forecast:
    """What a run takes on a cluster; `shortage` says why it does not fit and what to change."""

    cluster: Cluster
    work: Workload
    memory: Memory
    seconds: Mapping[str, float]
    hours: float
    shortage: str | None

    @property
    def step(self) -> float:
        """Seconds."""
        return sum(self.seconds.values())


def forecast(
    config: Config, shape: Shape, cluster: Cluster, rates: Rates, mean_tokens: float | None = None
) -> Forecast:
    """Memory and time of a run; `mean_tokens` is the expected completion, None: the longest."""
    memory = card_memory(config, shape, cluster)
    shortage = memory.shortage(longest_sequence(config))
    if shortage:
        shortage = f"{shortage}; {remedies(config, shape, cluster)}"
    slots = int(config.rollout.engine.get("max_num_seqs", 256))
    live = PROMPT_TOKENS + (mean_tokens or config.rollout.max_tokens)
    work = Workload.of(config, mean_tokens, min(slots, int(memory.sequences(live))))
    seconds = step_seconds(shape, work, cluster, rates)
    hours = run_hours(config, shape, work, cluster, rates)
    return Forecast(cluster, work, memory, seconds, hours, shortage)


def remedies(config: Config, shape: Shape, cluster: Cluster) -> str:
    """Overrides under which the run would fit, the cheapest first; or that none was found."""
    chosen: dict[str, Any] = {}
    for key, value in _candidates(config):
        section, _, name = key.partition(".")
        changed = _changed(config, section, name, value)
        if changed == config:
            continue
        config = changed
        chosen[key] = value
        if card_memory(config, shape, cluster).shortage(longest_sequence(config)) is None:
            words = " ".join(f"{key}={str(value).lower()}" for key, value in chosen.items())
            return f"it would fit with {words}"
    return "no setting was found under which it fits: take more or larger cards"


def _candidates(config: Config) -> Iterator[tuple[str, Any]]:
    yield "model.gradient_checkpointing", True
    yield "learner.zero_stage", 3
    tokens = config.learner.micro_batch_on("cuda")
    while tokens // 2 >= longest_sequence(config):
        tokens //= 2
        yield "learner.micro_batch_tokens", tokens
    for tenths in range(9, 1, -1):  # as much as fits, for the KV cache's sake
        yield "rollout.engine.gpu_memory_utilization", tenths / 10
    yield "learner.offload", "optimizer"
    yield "learner.offload", "parameters"


def _changed(config: Config, section: str, name: str, value: Any) -> Config:
    part = getattr(config, section)
    if name.startswith("engine."):
        update: dict[str, Any] = {"engine": {**part.engine, name.removeprefix("engine."): value}}
    else:
        update = {name: value}
    return config.model_copy(update={section: part.model_copy(update=update)})
