"""Ways to complete a word."""

from __future__ import annotations

from typing import NamedTuple


class Candidate(NamedTuple):
    """A whole word, as a program reads it, not as it is quoted."""

    text: str
    about: str = ""
    ends: bool = True
    """Whether a space follows: not behind `learner.` or `learner.lr=`."""


class Paths(NamedTuple):
    """Any path of the user's disk, behind the part `before` of the word."""

    before: str = ""
    folders_only: bool = False


Way = Candidate | Paths
