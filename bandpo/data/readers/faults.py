"""Rows on their way to problems, and the reason why one is none."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class RowFault(Exception):
    """The reason why a row is not a problem; a file's faults are reported together."""


Rows = Iterable[tuple[str, Any]]  # (place such as "line 7", mapping or RowFault)
