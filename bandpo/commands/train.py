"""`bandpo train`: one run, or a sweep of them."""

from __future__ import annotations

import os
import shlex

from bandpo.config.composition import compose
from bandpo.config.policy import introduction
from bandpo.config.schema import Config
from bandpo.ranks.launcher import world_size
from bandpo.tables.sweep import launch, sweep_of
from bandpo.train import run


def main(argv: list[str]) -> int:
    """Trains as the hydra overrides say; `-m` sweeps over comma-separated values."""
    if sweep := sweep_of(argv):
        return launch(sweep)
    config = compose("train", argv, Config, world_size())
    if os.environ.get("RANK", "0") == "0" and (line := introduction(argv, config.model)):
        print(line, flush=True)
    run(config, command=shlex.join(["bandpo", "train", *argv]))
    return 0
