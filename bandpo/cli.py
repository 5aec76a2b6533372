"""The command line: `bandpo <command> …`."""

from __future__ import annotations

import atexit
import importlib
import logging
import os
import shlex
import signal
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NoReturn

import bandpo
from bandpo.cpu import usable_cores
from bandpo.disk.cache import stand_in_for_home
from bandpo.disk.space import refusals_in_words
from bandpo.errors import RunHalted, UserError, did_you_mean
from bandpo.ranks.launcher import die_with_launcher, report_to_launcher
from bandpo.redaction import RedactingFormatter, redact
from bandpo.run.console import protect_output

# command -> (module:function, one line of help). A function takes the arguments after the
# command and returns an exit code; modules are imported only when their command runs.
COMMANDS: dict[str, tuple[str, str]] = {
    "train": ("bandpo.commands.train:main", "train a policy; hydra overrides follow"),
    "eval": ("bandpo.commands.eval:main", "evaluate a checkpoint on benchmarks"),
    "launch": ("bandpo.commands.launch:main", "train or eval on several ranks, nodes or SLURM"),
    "watch": ("bandpo.commands.watch:main", "a live page of runs: curves, clipping, samples"),
    "compare": ("bandpo.commands.compare:main", "compare two evaluations, or a run's steps"),
    "rescore": ("bandpo.commands.rescore:main", "score saved samples by both rewards; differences"),
    "data": ("bandpo.commands.data:main", "check | overlap | build | show datasets"),
    "replay": ("bandpo.commands.replay:main", "the recorded tokens of a run under every method"),
    "explain": ("bandpo.commands.explain:main", "one token under every method"),
    "plot": ("bandpo.commands.plot:main", "bounds | training | timeline: figures"),
    "table": (
        "bandpo.commands.table:main",
        "run a recipe: plan, launch, collect and report a table",
    ),
    "plan": ("bandpo.commands.plan:main", "print what `train` with these overrides would do"),
    "doctor": ("bandpo.commands.doctor:main", "report what this machine can run, and why not"),
}

# Options instead of a command; each may be followed by the name of a shell.
OPTIONS = {
    "--install-completion": "bandpo.commands.completion:install_main",
    "--show-completion": "bandpo.commands.completion:show_main",
}


def usage() -> str:
    """The text of `bandpo --help`."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    after = [
        "",
        "bandpo <command> --help tells more of one; bandpo --version",
        "bandpo --install-completion [bash|zsh|fish]: TAB completes commands, keys and values",
    ]
    return "\n".join(["usage: bandpo <command> [arguments]", "", *lines, *after])


@contextmanager
def _own_log_shown() -> Iterator[None]:
    """Shows bandpo's log at INFO on stderr, once; other loggers are left alone.

    Nothing reaches the root logger: handlers that a library has added there would repeat it. Every
    rank reads the same data, so that the first alone reports on it.
    """
    log, data = logging.getLogger("bandpo"), logging.getLogger("bandpo.data")
    before = log.level, log.propagate, data.level
    handler = logging.StreamHandler()
    handler.setFormatter(RedactingFormatter())
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    if os.environ.get("RANK", "0") != "0":
        data.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before[0])
        log.propagate = before[1]
        data.setLevel(before[2])


@contextmanager
def _without_wrapping() -> Iterator[None]:
    """Raises the UserError of a class built by hydra without hydra's wrapping."""
    from hydra.errors import InstantiationException  # a tenth of a second, which --help saves

    try:
        yield
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        raise


def _function_of(command: str) -> Callable[[list[str]], int | None]:
    """Raises UserError where packages beside torch prevent the import of the command's module."""
    place = OPTIONS[command] if command in OPTIONS else COMMANDS[command][0]
    module, function = place.split(":")
    try:
        return getattr(importlib.import_module(module), function)  # type: ignore[no-any-return]
    except Exception:
        from bandpo.environment import require_sound_companions  # imports torch

        require_sound_companions()
        raise


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns 2 with a message for bad input, 1 for everything that fails."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["--complete"]:  # asked for at every TAB: nothing else is imported
        from bandpo.completion import shells

        return shells.main(arguments[1:])
    protect_output()
    # DeepSpeed's launcher adds --local_rank, which the environment has as well.
    arguments = [word for word in arguments if not word.startswith("--local_rank=")]
    if arguments[:1] == ["help"] and len(arguments) > 1:
        arguments = [arguments[1], "--help"]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        print(f"bandpo {bandpo.__version__}")
        return 0
    command, *rest = arguments
    if command not in COMMANDS and command not in OPTIONS:
        close = did_you_mean(command, COMMANDS)
        print(f"bandpo: no command {command!r}{close}\n\n{usage()}", file=sys.stderr)
        return 2
    if command != "launch":  # its ranks share the cores among themselves
        # Before torch is imported: the ranks of a machine share its cores.
        ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // ranks_here)))
    # PyTorch's C++ warnings are about its own internals.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    die_with_launcher()
    try:
        if command in COMMANDS:
            stand_in_for_home()  # before a library looks for it
        with _own_log_shown(), _without_wrapping(), refusals_in_words():
            return int(_function_of(command)(rest) or 0)
    except UserError as error:
        print(redact(f"bandpo {command}: {error}"), file=sys.stderr)
        if error.detail:
            print(redact(error.detail), file=sys.stderr)
        if meant := error.instead.keys() & set(rest):
            words = [error.instead[word] if word in meant else word for word in rest]
            print(redact(f"Quoted: {shlex.join(['bandpo', command, *words])}"), file=sys.stderr)
        return 2
    except RunHalted as error:
        if os.environ.get("RANK", "0") == "0":  # all ranks have the same message
            print(redact(f"bandpo {command}: {error}"), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"bandpo {command}: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except Exception:
        text = redact(traceback.format_exc())
        rank = f"[rank{os.environ['RANK']}]: " if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ""
        sys.stderr.write(textwrap.indent(text, rank, lambda line: True))
        sys.stderr.flush()
        report_to_launcher(text)
        return 1


def run() -> NoReturn:
    """`main` as a process.

    One of several ranks ends without Python's own finalisation: a thread of torch's that asks for
    the interpreter meanwhile would abort the process, and a finished run would count as failed.
    """
    code = main()
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        sys.exit(code)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody reads it any more
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    run()
