"""The ends of a command with a message instead of a traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import NoReturn, TextIO

ERASED = "\r\x1b[2K"
"""Erases a terminal's current line."""


class UserError(Exception):
    """A problem in configuration, data or environment that the user can fix.

    The message names the file, line or key at fault and says what to do. The command line prints
    it without a traceback and exits with code 2.
    """

    instead: Mapping[str, str] = MappingProxyType({})
    """Words of the command line and their replacements; the whole command is shown with them."""

    @classmethod
    def join(cls, heading: str, problems: Sequence[str]) -> UserError:
        """One error for several problems, so that a user can fix all of them at once."""
        return cls("\n".join([heading, *(f"  - {problem}" for problem in problems)]))


def listed(names: Sequence[str], most: int = 5, separator: str = ", ") -> str:
    """The first `most` names for a message, and the number of the others."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return separator.join(names[:most]) + more


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
