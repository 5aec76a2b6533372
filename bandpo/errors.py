"""The ends of a command with a message instead of a traceback."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from types import MappingProxyType
from typing import NoReturn, Self, TextIO

ERASED = "\r\x1b[2K"
"""Erases a terminal's current line."""

# Between a command and a user's own code.
_MACHINERY = ("<frozen", "/importlib/", "/hydra/", "/concurrent/futures/", "/asyncio/")


class UserError(Exception):
    """A problem in configuration, data or environment that the user can fix.

    The message names the file, line or key at fault and says what to do. The command line prints
    it without a traceback and exits with code 2.
    """

    instead: Mapping[str, str] = MappingProxyType({})
    """Words of the command line and their replacements; the whole command is shown with them."""
    detail: str = ""
    """Lines that the command line shows below the message: the end of a traceback."""

    @classmethod
    def caused(cls, message: str, cause: BaseException) -> Self:
        """An error with the end of its cause's traceback, or with its cause's detail."""
        error = cls(message)
        error.detail = cause.detail if isinstance(cause, UserError) else last_frames(cause)
        return error

    @classmethod
    def join(cls, heading: str, problems: Sequence[str]) -> UserError:
        """One error for several problems, so that a user can fix all of them at once."""
        return cls("\n".join([heading, *(f"  - {problem}" for problem in problems)]))


def listed(names: Sequence[str], most: int = 5, separator: str = ", ") -> str:
    """The first `most` names for a message, and the number of the others."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return separator.join(names[:most]) + more


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean …?` with the known names that are close to the word; empty without any.

    Of names with dots the last parts are compared: `lr` and `learner.lr` are close.
    """
    names: dict[str, list[str]] = {}
    for name in dict.fromkeys(known):
        names.setdefault(_last(name), []).append(name)
    last = _last(word)
    close = [last] if last in names else get_close_matches(last, names, n=3, cutoff=0.7)
    # Of several with one last part, those in the place that the word names.
    place = word.rpartition(".")[0]
    found = [name for key in close for name in names[key]]
    found = [name for name in found if place and name.startswith(f"{place}.")] or found
    return f"; did you mean {' or '.join(found[:3])}?" if found else ""


def _last(name: str) -> str:
    return name.rpartition(".")[2].lower()


def place_of(error: BaseException) -> str:
    """` (file, line N)` where the error was raised; empty where that is unknown."""
    frames = traceback.extract_tb(error.__traceback__)[-1:]
    return "".join(f" ({frame.filename}, line {frame.lineno})" for frame in frames)


def last_frames(error: BaseException, most: int = 3) -> str:
    """The end of the error's traceback, as Python shows it, without the machinery around it."""
    own = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not any(part in frame.filename for part in _MACHINERY)
    ]
    return "".join(traceback.format_list(own[-most:])).rstrip()


class RunHalted(Exception):
    """A run ends itself, since continuing would be a waste or do harm.

    Raised on every rank. The command line prints the message without a traceback and exits with
    code 1.
    """


def exit_at_once(message: str, code: int) -> NoReturn:
    """Ends this process without any cleaning up, whatever its other threads do.

    The message goes to stderr and, where a run has redirected that, to the console as well, in
    place of a progress bar that may stand there.
    """
    places: dict[int, TextIO] = {}
    for stream in (sys.stderr, sys.__stderr__):
        with suppress(AttributeError, OSError, ValueError):  # it may be closed, or None
            places[stream.fileno()] = stream  # type: ignore[union-attr,assignment]
    for stream in places.values():
        with suppress(OSError, ValueError):
            stream.write(f"{ERASED if stream.isatty() else ''}{message}\n")
            stream.flush()
    os._exit(code)
