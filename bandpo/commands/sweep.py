"""`bandpo train -m a=1,2 b=x,y`: every combination, one process after another.

Hydra's own launcher would run them in one process, where a second vLLM and a second DeepSpeed
cannot start; its sweep syntax is kept.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from signal import SIGINT, SIGTERM

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from bandpo.config.overrides import in_shell, is_understood, meant
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
        raise _misread(words, error) from None
    varied = {override.get_key_element() for override in parsed if override.is_sweep_override()}
    for word in words:
        if word.startswith(("run.dir=", "run.name=")) and "${" not in word and len(runs) > 1:
            key = word.split("=")[0]
            if key not in varied:
                raise UserError(
                    f"{word}: the {len(runs)} runs of this sweep would share one folder; leave "
                    f"{key} out, or name in it what varies, as in {key}='x-${{seed}}'"
                )
    return [[*run, *_name(run, varied)] for run in runs]


def _misread(words: Sequence[str], error: HydraException) -> UserError:
    """What to say of words that hydra does not understand, as `compose` does."""
    texts = {word: meant(word) for word in words if not is_understood(word)}
    told = UserError.join(str(error), [f"{w}: {in_shell(t)}" for w, t in texts.items() if t])
    told.instead = {word: text for word, text in texts.items() if text}
    return told


def _name(run: Sequence[str], varied: set[str]) -> list[str]:
    if any(override.startswith(("run.name=", "run.dir=")) for override in run):
        return []
    parts = [override for override in run if override.split("=")[0] in varied]
    return [f"run.name={re.sub(r'[^A-Za-z0-9.=_-]+', '_', '-'.join(parts)).replace('=', '_')}"]


@contextmanager
def _handed_on_to(process: subprocess.Popen[bytes]) -> Iterator[list[int]]:
    """SIGINT and SIGTERM go to the process; yields those that came."""
    received: list[int] = []

    def hand_on(number: int, frame: object) -> None:
        received.append(number)
        process.send_signal(number)

    before = {number: signal.signal(number, hand_on) for number in (SIGINT, SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def launch(sweep: Sequence[Sequence[str]]) -> int:
    """Runs them in turn, goes on after a failure, and returns the first non-zero exit code.

    A signal to stop is handed on to the run it meets, which saves and ends; no other is started.
    """
    failed: list[tuple[int, str]] = []
    for index, overrides in enumerate(sweep, 1):
        print(f"run {index} of {len(sweep)}: bandpo train {' '.join(overrides)}", flush=True)
        command = [sys.executable, "-m", "bandpo.cli", "train", *overrides]
        # A group of its own: Ctrl-C in a terminal reaches the run once, through us.
        process = subprocess.Popen(command, process_group=0)
        with _handed_on_to(process) as received:
            code = process.wait()
        if code:
            failed.append((code, " ".join(overrides)))
        if received:
            print("the sweep has stopped: the same command goes on with it", file=sys.stderr)
            break
    for code, overrides in failed:
        print(f"failed with exit code {code}: bandpo train {overrides}", file=sys.stderr)
    return failed[0][0] if failed else 0
