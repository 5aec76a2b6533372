"""The time of a step on a cluster: a stated model of data sheets and three fitted rates.

docs/cost-model.md says where the rates come from and how far the model can be trusted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from bandpo.config.schema import Config
from bandpo.model.architecture import Shape
from bandpo.planning.gpus import Cluster
from bandpo.planning.workload import Workload, evaluation_samples


@dataclass(frozen=True)
class Rates:
    """Rates that no data sheet states.

    learner_efficiency  share of a GPU's FLOP/s that the learner's passes reach
    engine_overhead     seconds of a decoding step beyond the data sheet's
    answers_per_s       verified by one rank's workers
    """

    learner_efficiency: float
    engine_overhead: float
    answers_per_s: float


# Fitted to the published log of the paper's setup; `scripts/document_cost.py` has log and fit.
RATES = Rates(learner_efficiency=0.2692, engine_overhead=6.851e-3, answers_per_s=512.0)


def step_seconds(
    shape: Shape, work: Workload, cluster: Cluster, rates: Rates = RATES
) -> dict[str, float]:
    """Seconds of a step by phase: generation, old_logprob, reference, update, reward, sync.

    A learner pass takes the longer of its arithmetic and of what it moves between GPUs: sharded
    weights once per micro-batch and pass, gradients reduced. The reward overlaps with generation;
    it is a phase of its own here because it is one in the log that the rates were fitted to.
    """
    gpu, ranks = cluster.gpu, cluster.count
    one_pass = shape.forward_flops(work.length) * work.tokens / ranks
    arithmetic = one_pass / (gpu.flops * rates.learner_efficiency)
    rank_tokens = work.tokens / ranks
    gathers = max(1.0, rank_tokens / work.micro_batch_tokens)
    gather = _gather_seconds(shape, work.width, cluster)
    of_weights = gathers * gather * work.sharded
    if work.sharded:
        # Gathered forward and backward; gradients are reduced with as many bytes as they have.
        micro_batches = max(work.updates, work.epochs * gathers)
        moved = (2 + work.trained_share) * micro_batches * gather
    else:
        moved = 2 * work.trained_share * work.updates * gather
    return {
        "generation": _generation_seconds(shape, work, cluster, rates),
        "old_logprob": work.old_share * max(arithmetic, of_weights),
        "reference": work.has_reference * max(arithmetic, of_weights),
        "update": max(work.epochs * work.passes_per_update * arithmetic, moved),
        "reward": work.samples / ranks / rates.answers_per_s,
        "sync": gather + shape.parameters * work.width / gpu.bandwidth,
    }


def whole_step(work: Workload, seconds: Mapping[str, float]) -> float:
    """Seconds of a step from those of its phases: their sum, or the longer side beside servers."""
    sampling = seconds["generation"] + seconds["reward"]
    learning = sum(seconds.values()) - sampling - seconds["sync"]
    both = max(sampling, learning) if work.lag else sampling + learning
    return both + seconds["sync"]


def _gather_seconds(shape: Shape, width: int, cluster: Cluster) -> float:
    """Seconds to bring all weights from the other GPUs to each GPU."""
    others = (cluster.count - 1) / cluster.count
    return others * shape.parameters * width / cluster.link


def _generation_seconds(shape: Shape, work: Workload, cluster: Cluster, rates: Rates) -> float:
    """Seconds of decoding until the longest completion is whole.

    Every step reads the weights and pays the engine's overhead; samples beyond a GPU's slots wait
    for slots to become free. Reading the KV cache and the arithmetic of all tokens are added.
    """
    gpu = cluster.gpu
    samples = work.samples / cluster.count
    slots = max(1, min(samples, work.concurrency))
    steps = work.longest_tokens + (samples - slots) * work.mean_tokens / slots
    per_step = rates.engine_overhead + shape.matmul_parameters * work.width / gpu.bandwidth
    context = work.prompt_tokens + work.mean_tokens / 2
    cache = samples * work.mean_tokens * context * shape.kv_bytes(work.width) / gpu.bandwidth
    arithmetic = samples * work.mean_tokens * shape.forward_flops(context) / gpu.flops
    return steps * per_step + cache + arithmetic


def run_hours(config: Config, shape: Shape, work: Workload, cluster: Cluster) -> float:
    """Hours of a whole run: its steps, and its evaluations."""
    trainer = config.trainer
    step = whole_step(work, step_seconds(shape, work, cluster))
    evaluations = 2 + (trainer.steps - 1) // trainer.eval_every if trainer.eval_every else 2
    evaluation = replace(
        work, samples=evaluation_samples(config), longest_tokens=config.eval.max_tokens
    )
    generation = _generation_seconds(shape, evaluation, cluster, RATES)
    return (trainer.steps * step + evaluations * generation) / 3600
