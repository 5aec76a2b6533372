"""`bandpo train -m a=1,2 b=x,y`: every combination, one process after another.

Hydra's own launcher would run them in one process, where a second vLLM and a second DeepSpeed
cannot start; its sweep syntax is kept.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from signal import SIGINT, SIGTERM

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from bandpo.config.overrides import in_shell, is_understood, meant
from bandpo.errors import UserError
from bandpo.tables.launch import one_rank, signals_to

FLAGS = ("-m", "--multirun")


def sweep_of(overrides: Sequence[str]) -> list[list[str]]:
    """The override lists of a sweep, one per run; empty without `-m`.

    Each run gets a `run.name` of its own, made of the values that vary.
    """
    if not any(flag in overrides for flag in FLAGS):
        return []
    words = [word for word in overrides if word not in FLAGS]
    try:
        parsed = OverridesParser.create().parse_overrides(words)
        (runs,) = BasicSweeper.split_arguments(parsed, None)
    except HydraException as error:
        raise _misread(words, error) from None
    varied = {override.get_key_element() for override in parsed if override.is_sweep_override()}
    for word in words:
        if word.startswith(("run.dir=", "run.name=")) and "${" not in word and len(runs) > 1:
            key = word.split("=")[0]
            if key not in varied:
                raise UserError(
                    f"{word}: the {len(runs)} runs of this sweep would share one folder; omit "
                    f"{key}, or make it vary, as in {key}='x-${{seed}}'"
                )
    return [[*run, *_name(run, varied)] for run in runs]


def _misread(words: Sequence[str], error: HydraException) -> UserError:
    """The error for words that hydra does not understand, as `compose` raises it."""
    texts = {word: meant(word) for word in words if not is_understood(word)}
    found = UserError.join(str(error), [f"{w}: {in_shell(t)}" for w, t in texts.items() if t])
    found.instead = {word: text for word, text in texts.items() if text}
    return found


def _name(run: Sequence[str], varied: set[str]) -> list[str]:
    if any(override.startswith(("run.name=", "run.dir=")) for override in run):
        return []
    parts = [override for override in run if override.split("=")[0] in varied]
    return [f"run.name={re.sub(r'[^A-Za-z0-9.=_-]+', '_', '-'.join(parts)).replace('=', '_')}"]


def launch(sweep: Sequence[Sequence[str]]) -> int:
    """Trains the runs in turn, also after a failure; returns the first non-zero exit code.

    SIGINT and SIGTERM are passed on to the run that is training, which saves and ends; no other
    is started.
    """
    failed: list[tuple[int, str]] = []
    for index, overrides in enumerate(sweep, 1):
        print(f"run {index} of {len(sweep)}: bandpo train {' '.join(overrides)}", flush=True)
        code, is_stopped = _train(overrides)
        if code:
            failed.append((code, " ".join(overrides)))
        if is_stopped:
            print("the sweep has stopped: the same command resumes it", file=sys.stderr)
            break
    for code, run in failed:
        print(f"failed with exit code {code}: bandpo train {run}", file=sys.stderr)
    return failed[0][0] if failed else 0


def _train(overrides: Sequence[str]) -> tuple[int, bool]:
    """The exit code of a run, and whether it was asked to stop."""
    received: list[int] = []
    # A group of its own: Ctrl-C in a terminal reaches the run once, through us.
    process = subprocess.Popen(one_rank(overrides), process_group=0)

    def pass_on(number: int, frame: object) -> None:
        received.append(number)
        process.send_signal(number)

    with signals_to(pass_on, SIGINT, SIGTERM):
        return process.wait(), bool(received)
