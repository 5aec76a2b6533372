"""The one exception for everything a user can mend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType


class UserError(Exception):
    """A problem in configuration, data or environment, told in words a user can act on.

    The command line prints the message without a traceback and exits with code 2. The message
    names the file, line or key at fault and says what to do.
    """

    instead: Mapping[str, str] = MappingProxyType({})
    """Words of the command line, and what to write in their place: it shows the whole command."""

    @classmethod
    def join(cls, heading: str, problems: Sequence[str]) -> UserError:
        """One error out of several problems, so that a user mends them in one go."""
        return cls("\n".join([heading, *(f"  - {problem}" for problem in problems)]))


def listed(names: Sequence[str], most: int = 5, separator: str = ", ") -> str:
    """The first `most` names for a message, and the number of the others."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return separator.join(names[:most]) + more


class RunHalted(Exception):
    """A run that ends itself because going on would waste it or do harm.

    Raised on every rank. The command line prints the message without a traceback, and exits with
    code 1.
    """
