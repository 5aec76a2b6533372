"""`bandpo plan`: a configuration in prompts, samples, updates, tokens and memory.

With `--cluster 8xH200` also whether it fits on such GPUs, and how long a step takes there.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bandpo.config.composition import compose
from bandpo.config.policy import introduction
from bandpo.config.rollout_correction import AUTO, NONE, by_precision, name_of
from bandpo.config.schema import Config
from bandpo.data.benchmarks import benchmark_spec, expanded
from bandpo.environment import hardware
from bandpo.errors import UserError
from bandpo.evaluation.summary import require_logged
from bandpo.learner.updates.rates import planned_rate
from bandpo.model.architecture import Shape, config_of, shape_of
from bandpo.planning.doubts import doubts
from bandpo.planning.fit import fitted_without_gpu
from bandpo.planning.forecast import Forecast, forecast
from bandpo.planning.gpus import Cluster
from bandpo.planning.memory import machine_memory
from bandpo.ranks.launcher import world_size
from bandpo.rollout.context import context_length


def plan(config: Config, shape: Shape, ranks: int) -> dict[str, str]:
    """The sizes that follow from a configuration, as lines of a table."""
    return {
        **_settings(config, shape, ranks),
        **_sizes(config),
        "evaluation": _evaluation(config),
        "checkpoints": _rhythm(config.trainer.checkpoint_every, "after the last step"),
    }


def _settings(config: Config, shape: Shape, ranks: int) -> dict[str, str]:
    learner, data, rollout = config.learner, config.data, config.rollout
    adapters = f", LoRA of rank {learner.lora.rank}" if learner.lora.rank else ""
    return {
        "run": str(Path(config.run.dir)),
        "model": f"{config.model.path}, {shape.parameters / 1e6:,.1f} M parameters, "
        f"{config.model.dtype}{adapters}",
        "method": f"{config.method.name}{_correction(config)}",
        "learning rate": f"{learner.lr:g}, betas {learner.betas[0]:g} and {learner.betas[1]:g}, "
        f"weight decay {learner.weight_decay:g}{_schedule(config)}",
        "training data": _source(data.train),
        "prompts": f"template {data.template}, at most {data.max_prompt_tokens:,} tokens",
        "completions": f"at most {rollout.max_tokens:,} tokens, temperature "
        f"{rollout.temperature:g}",
        "engine": str(rollout.engine["_target_"]),
        "ranks": f"{ranks}, ZeRO stage {learner.zero_stage}",
    }


def _correction(config: Config) -> str:
    method, engine = config.method, config.rollout.engine
    if method.correction == AUTO:
        choice = by_precision(config.model.dtype, engine, method.loss)
        found = f"{choice.name}, since {choice.reason}"
        return "" if choice.name == NONE else f"; correction {found}"
    return f"; correction {name_of(method.correction)}"


def _schedule(config: Config) -> str:
    """A learning rate that does not stay, at the first, the middle and the last step."""
    learner, steps = config.learner, config.trainer.steps
    if learner.schedule == "constant":
        return ""
    shown = sorted({1, (steps + 1) // 2, steps})
    rates = ", ".join(f"{planned_rate(learner, steps, step):.3g}" for step in shown)
    return f"; {learner.schedule}: {rates} at step(s) {', '.join(map(str, shown))}"


def _sizes(config: Config) -> dict[str, str]:
    rollout, learner = config.rollout, config.learner
    samples = rollout.prompts_per_step * rollout.group_size
    updates = learner.updates_per_rollout * learner.epochs_per_rollout
    steps = config.trainer.steps
    return {
        "samples per step": f"{rollout.prompts_per_step} prompts × {rollout.group_size} samples = "
        f"{samples:,} samples",
        "tokens per step": f"at most {samples * rollout.max_tokens:,} sampled",
        "updates per step": f"{updates} of {samples // learner.updates_per_rollout:,} samples",
        "in total": f"{steps:,} steps, {steps * samples:,} samples, {steps * updates:,} updates",
    }


def _evaluation(config: Config) -> str:
    names = ", ".join(map(_benchmark_name, config.eval.benchmarks))
    if not names:
        return "none"
    rhythm = _rhythm(config.trainer.eval_every, "before the first and after the last step")
    return (
        f"{names}, {config.eval.n} samples per problem of at most {config.eval.max_tokens:,} "
        f"tokens, {rhythm}"
    )


def _source(train: str | Mapping[str, Any]) -> str:
    """A data source in a few words."""
    if isinstance(train, str):
        return train
    named = next((str(train[key]) for key in ("path", "hub", "name") if key in train), None)
    return named or str(train.get("_target_"))


def _rhythm(every: int, without: str) -> str:
    """How often something happens that happens every `every` steps; `without` where that is 0."""
    return f"every {every} step(s)" if every else without


def _benchmark_name(spec: str | Mapping[str, Any]) -> str:
    return spec if isinstance(spec, str) else str(spec.get("name"))


def forecast_lines(found: Forecast) -> Mapping[str, str]:
    """A forecast as lines of a table."""
    learner, engine = found.memory.learner, found.memory.engine
    return {
        "cluster": str(found.cluster),
        "chosen by memory": f"micro-batches of {found.config.learner.micro_batch_tokens:,} tokens, "
        f"{_share(found.config)} of the GPU for the engine",
        "memory per GPU": f"{found.memory.peak:.0f} of {found.memory.usable:.0f} GiB usable",
        "while the learner works": f"{sum(learner.values()):.1f} GiB: {_parts(learner)}",
        "while the engine works": f"{found.memory.resident + sum(engine.values()):.1f} GiB: "
        f"{_parts({'learner': found.memory.resident, **engine})}",
        "mean tokens": f"{found.work.tokens / 1e6:.2f} M per step, "
        f"{found.work.length:.0f} per sequence",
        "seconds per step": f"{_rounded(found.step)}: {_parts(found.seconds)}"
        + (", sampling beside learning" if found.work.lag else ""),
        "hours of the run": f"{_rounded(found.hours)}, evaluations included",
    }


def _share(config: Config) -> str:
    share = config.rollout.engine.get("gpu_memory_utilization")
    return "none" if share is None else f"{share:.0%}"


def _rounded(number: float) -> str:
    return f"{number:.0f}" if number >= 10 else f"{number:.1f}"


def _parts(parts: Mapping[str, float], digits: int = 1) -> str:
    return ", ".join(f"{name} {size:.{digits}f}" for name, size in parts.items())


def main(argv: list[str]) -> int:
    """Prints the plan of a `bandpo train` with the same overrides; loads no weights."""
    parser = argparse.ArgumentParser(prog="bandpo plan", description=__doc__)
    parser.add_argument("overrides", nargs="*", help="as for bandpo train: see its --help")
    parser.add_argument(
        "--cluster", type=Cluster.of, help="such as 8xH200: whether it fits, and how long it takes"
    )
    parser.add_argument(
        "--mean-tokens", type=float, help="expected tokens per completion; default: the longest"
    )
    arguments = parser.parse_intermixed_args(argv)
    cluster: Cluster | None = arguments.cluster
    ranks = cluster.count if cluster else world_size()
    config = compose("train", arguments.overrides, Config, ranks, True if cluster else None)
    names = [benchmark_spec(spec).name for spec in expanded(config.eval.benchmarks)]
    require_logged("trainer.keep_best", config.trainer.keep_best, names, config.eval.n)
    shape = shape_of(config.model)
    lines = plan(config, shape, ranks)
    if not cluster:
        gib = hardware()["memory_gib"]
        memory = machine_memory(fitted_without_gpu(config, shape, gib, ranks), shape, ranks, gib)
        parts = _parts({**memory.learner, **memory.engine}, 2)
        lines["memory per rank"] = f"about {memory.peak:.2f} GiB: {parts}"
    shortage = None
    if cluster:
        found = forecast(config, shape, cluster, arguments.mean_tokens)
        lines |= forecast_lines(found)
        shortage = found.shortage
    table = Table(title="bandpo plan", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in lines.items():
        table.add_row(name, value)
    console = Console()
    console.print(table)
    if line := introduction(arguments.overrides, config.model):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    for doubt in doubts(config, shape, context_length(config_of(config.model))):
        console.print(f"! {doubt}", highlight=False, markup=False, soft_wrap=True)
    if shortage:
        raise UserError(f"it does not fit on {cluster}: {shortage}")
    return 0
