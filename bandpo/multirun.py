"""`bandpo train -m a=1,2 b=x,y`: every combination, one process after another.

Hydra's own launcher would run them in one process, where a second vLLM and a second DeepSpeed
cannot start; its sweep syntax is kept.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from bandpo.errors import UserError

FLAGS = ("-m", "--multirun")


def sweep_of(overrides: Sequence[str]) -> list[list[str]]:
    """The override lists of a sweep, one a run; empty without `-m`.

    Each run gets a `run.name` of its own, made of the values that vary.
    """
    if not any(flag in overrides for flag in FLAGS):
        return []
    words = [word for word in overrides if word not in FLAGS]
    try:
        parsed = OverridesParser.create().parse_overrides(words)
        (runs,) = BasicSweeper.split_arguments(parsed, None)
    except HydraException as error:
        raise UserError(str(error)) from None
    varied = {override.get_key_element() for override in parsed if override.is_sweep_override()}
    return [[*run, *_name(run, varied)] for run in runs]


def _name(run: Sequence[str], varied: set[str]) -> list[str]:
    if any(override.startswith(("run.name=", "run.dir=")) for override in run):
        return []
    parts = [override for override in run if override.split("=")[0] in varied]
    return [f"run.name={re.sub(r'[^A-Za-z0-9.=_-]+', '_', '-'.join(parts)).replace('=', '_')}"]


def launch(sweep: Sequence[Sequence[str]]) -> int:
    """Runs them in turn, goes on after a failure, and returns the first non-zero exit code."""
    failed: list[tuple[int, str]] = []
    for index, overrides in enumerate(sweep, 1):
        print(f"run {index} of {len(sweep)}: bandpo train {' '.join(overrides)}", flush=True)
        done = subprocess.run([sys.executable, "-m", "bandpo.cli", "train", *overrides])
        if done.returncode:
            failed.append((done.returncode, " ".join(overrides)))
    for code, overrides in failed:
        print(f"failed with exit code {code}: bandpo train {overrides}", file=sys.stderr)
    return failed[0][0] if failed else 0
