"""The places from which shells load completion scripts of a user's own."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from bandpo.completion.commands import SHELLS
from bandpo.completion.shells import script
from bandpo.disk.space import refusals_in_words, require_folder
from bandpo.disk.whole import write_atomically
from bandpo.errors import UserError, did_you_mean

MARK = "written by `bandpo --install-completion"
"""In the head of every script: a file without it is the user's."""
# Where distributions and package managers put the package that loads bash's scripts.
LOADERS = (
    "/usr/share/bash-completion/bash_completion",
    "/usr/local/share/bash-completion/bash_completion",
    "/opt/homebrew/share/bash-completion/bash_completion",
    "/etc/bash_completion",
)


@dataclass(frozen=True)
class Place:
    """A shell's file, and a line for the user's own settings where the shell needs one."""

    file: Path
    line: str = ""
    settings: str = ""


def place_for(shell: str) -> Place:
    """The place of a shell's script; raises UserError where the user has no home."""
    if shell == "bash":
        folder = _folder("BASH_COMPLETION_USER_DIR") or (
            (_folder("XDG_DATA_HOME") or _home() / ".local/share") / "bash-completion"
        )
        file = folder / "completions" / "bandpo"
        has_loader = any(map(os.path.exists, LOADERS))
        return Place(file, "" if has_loader else f"source {_quoted(file)}", "~/.bashrc")
    if shell == "fish":
        folder = _folder("XDG_CONFIG_HOME") or _home() / ".config"
        return Place(folder / "fish/completions/bandpo.fish")
    settings = (_folder("ZDOTDIR") or _home()) / ".zshrc"
    folder = settings.parent / ".zfunc"
    line = f"fpath=({_quoted(folder)} $fpath); autoload -Uz compinit; compinit"
    return Place(folder / "_bandpo", "" if _names(settings, folder) else line, str(settings))


def install(shell: str) -> str:
    """Writes a shell's script where the shell finds it; returns what was done, and how to undo it.

    Only that file is written, and no other file of the user's is changed. Raises UserError where it
    cannot be written, or another one stands there.
    """
    place = place_for(shell)
    file, text = place.file, script(shell)
    with refusals_in_words(str(file)):
        before = file.read_text(encoding="utf-8", errors="replace") if file.exists() else None
        if before is not None and MARK not in before:
            raise UserError(
                f"{file} is not bandpo's: move it away, or save the output of "
                f"`bandpo --show-completion {shell}` where your {shell} reads it"
            )
        if before != text:
            require_folder(file.parent, "")
            write_atomically(file, text)
    lines = [f"{'already there' if before == text else 'written'}: {file}"]
    if place.line:
        lines += [f"add this line to {place.settings}, which is left as it is:", f"  {place.line}"]
    return "\n".join([*lines, f"it takes effect in a new {shell}; undo: rm {_quoted(file)}"])


def shell_in_use() -> str:
    """The shell that this process was started from, else that of $SHELL.

    Raises UserError where neither is one that can complete `bandpo`.
    """
    usual = Path(os.environ.get("SHELL", "")).name
    for program in (*_programs_above(), usual):
        if (name := program.lstrip("-")) in SHELLS:  # a login shell has a dash
            return name
    raise UserError(f"which shell? name it: {', '.join(SHELLS)}")


def _programs_above() -> list[str]:
    """The names of this process's parent, of its parent, and so on."""
    try:
        return [process.name() for process in psutil.Process().parents()]
    except psutil.Error:  # one has just ended, or is hidden from us
        return []


def named_shell(words: Sequence[str]) -> str | None:
    """The one shell that is named, or None; raises UserError for anything else."""
    if not words:
        return None
    if len(words) > 1 or words[0] not in SHELLS:
        given = " ".join(words)
        meant = did_you_mean(given, SHELLS)
        raise UserError(f"no completion for {given!r}{meant} (there are {', '.join(SHELLS)})")
    return words[0]


def _folder(variable: str) -> Path | None:
    """The folder that a variable names; relative ones are to be ignored, by the XDG's rule."""
    path = Path(os.environ.get(variable, ""))
    return path if path.is_absolute() else None


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:
        raise UserError("there is no home folder to write to: set HOME") from None


def _names(settings: Path, folder: Path) -> bool:
    """Whether a file of settings has the folder already, in one of its usual spellings."""
    if not settings.is_file():
        return False
    text = settings.read_text(encoding="utf-8", errors="replace")
    return any(name in text for name in (str(folder), f"~/{folder.name}", f"$HOME/{folder.name}"))


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
