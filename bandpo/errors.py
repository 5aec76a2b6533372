"""The exceptions that end a command with a message instead of a traceback."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType


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
