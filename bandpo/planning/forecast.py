"""Memory and time of a run on a cluster, and the settings under which it would fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from bandpo.config.schema import Config, longest_sequence
from bandpo.config.sections.learner import OFFLOAD_STAGES
from bandpo.model.architecture import Shape
from bandpo.planning.fit import fitted, replaced
from bandpo.planning.gpus import Cluster
from bandpo.planning.memory import Memory, gpu_memory
from bandpo.planning.time import run_hours, step_seconds, whole_step
from bandpo.planning.workload import PROMPT_TOKENS, Workload


@dataclass(frozen=True)
class Forecast:
    """A run on a cluster; `shortage` says why it does not fit and what to change.

    `config` has the settings that the GPU's memory decides, `seconds` are those of a step by phase,
    `hours` those of the run.
    """

    config: Config
    cluster: Cluster
    work: Workload
    memory: Memory
    seconds: Mapping[str, float]
    hours: float
    shortage: str | None

    @property
    def step(self) -> float:
        """Seconds of a step."""
        return whole_step(self.work, self.seconds)


def forecast(
    config: Config, shape: Shape, cluster: Cluster, mean_tokens: float | None = None
) -> Forecast:
    """Memory and time of a run; `mean_tokens` is the expected completion, None: the longest."""
    config = fitted(config, shape, cluster.gpu.memory_gib, cluster.count)
    memory = gpu_memory(config, shape, cluster)
    shortage = memory.shortage(longest_sequence(config))
    if shortage:
        shortage = f"{shortage}; {remedies(config, shape, cluster)}"
    slots = int(config.rollout.engine.get("max_num_seqs", 256))
    live = PROMPT_TOKENS + (mean_tokens or config.rollout.max_tokens)
    work = Workload.of(config, shape, mean_tokens, min(slots, int(memory.sequences(live))))
    seconds = step_seconds(shape, work, cluster)
    hours = run_hours(config, shape, work, cluster)
    return Forecast(config, cluster, work, memory, seconds, hours, shortage)


def remedies(config: Config, shape: Shape, cluster: Cluster) -> str:
    """Overrides under which the run would fit, the cheapest first; or that none was found."""
    for choice in _choices(config):
        changed = config
        for key, value in choice.items():
            changed = replaced(changed, key, value)
        if gpu_memory(changed, shape, cluster).shortage(longest_sequence(config)) is None:
            words = " ".join(f"{key}={str(value).lower()}" for key, value in choice.items())
            return f"it would fit with {words}"
    return "no setting was found under which it fits: take more or larger GPUs"


def _choices(config: Config) -> Iterator[dict[str, Any]]:
    """Settings to change together; what costs more time changes later, the KV cache's share first.

    The share falls in steps of a tenth: as much as fits, for the KV cache's sake.
    """
    model, learner = config.model, config.learner
    batches = [learner.micro_batch_on("cuda")]
    while batches[-1] // 2 >= longest_sequence(config):
        batches.append(batches[-1] // 2)
    share = float(config.rollout.engine.get("gpu_memory_utilization", 0.9))
    settings: dict[str, list[Any]] = {  # the outermost last
        "rollout.engine.gpu_memory_utilization": [
            share,
            *(tenths / 10 for tenths in range(9, 1, -1) if tenths / 10 != share),
        ],
        "model.gradient_checkpointing": sorted({model.gradient_checkpointing, True}),
        "learner.zero_stage": sorted({learner.zero_stage, 3}),
        "learner.micro_batch_tokens": batches,
        "learner.offload": list(
            dict.fromkeys([learner.offload, "between_updates", "optimizer", "parameters"])
        ),
    }
    present = {key: values[0] for key, values in settings.items()}
    for values in product(*reversed(list(settings.values()))):
        choice = dict(zip(settings, reversed(values), strict=True))
        if choice["learner.zero_stage"] not in OFFLOAD_STAGES[choice["learner.offload"]]:
            continue
        yield {key: value for key, value in choice.items() if value != present[key]}
