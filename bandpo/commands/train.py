"""`bandpo train`: one run, or a sweep of them."""

from __future__ import annotations

import os
import shlex

from bandpo.commands.composed import Composed
from bandpo.config.composition import compose
from bandpo.config.policy import introduction
from bandpo.config.schema import Config
from bandpo.ranks.launcher import world_size
from bandpo.tables.sweep import launch, sweep_of
from bandpo.train import run

COMMAND = Composed(
    "train",
    Config,
    "Trains a policy with reinforcement learning; without a model the small policy that ships,\n"
    "with settings of its own (configs/policy/embedded.yaml).\n"
    "`bandpo plan` with the same overrides shows what would be done, and loads no weights.",
    keys=(
        "model.path",
        "model.dtype",
        "data.train",
        "data.template",
        "data.system_prompt",
        "data.chat_template",
        "rollout.prompts_per_step",
        "rollout.group_size",
        "rollout.max_tokens",
        "rollout.temperature",
        "learner.lr",
        "learner.updates_per_rollout",
        "learner.zero_stage",
        "learner.micro_batch_tokens",
        "learner.offload",
        "trainer.steps",
        "trainer.checkpoint_every",
        "trainer.eval_every",
        "trainer.resume",
        "eval.benchmarks",
        "eval.n",
        "tracking.trackers",
        "run.dir",
        "run.name",
        "seed",
    ),
    examples=(
        "bandpo train                                         # the small policy that ships",
        "bandpo train method=grpo trainer.steps=5",
        "bandpo train model.path=Qwen/Qwen2.5-0.5B-Instruct data=dapo_math learner.lr=1e-6",
        "bandpo train -m method=grpo,band_kl seed=0,1,2       # six runs, one after another",
        "bandpo train method=dapo --cfg job --package method  # the configuration of a method",
        "bandpo launch -- method=grpo                         # a process per GPU",
    ),
    given=("model.path=MODEL",),
    options=(("-m", "--multirun", "sweep: values with commas are a run each, one after another"),),
)


def main(argv: list[str]) -> int:
    """Trains as the hydra overrides say; `-m` sweeps over comma-separated values."""
    if (words := COMMAND.words(argv)) is None:
        return 0
    if sweep := sweep_of(words):
        return launch(sweep)
    config = compose("train", words, Config, world_size())
    if os.environ.get("RANK", "0") == "0" and (line := introduction(words, config.model)):
        print(line, flush=True)
    run(config, command=shlex.join(["bandpo", "train", *argv]))
    return 0
