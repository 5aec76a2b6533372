"""The string rule with which the paper's public release scored answers.

The last "Answer:" line within the last 300 characters, normalised, must equal the normalised
reference as a string: +1, else −1. It sees neither `\\boxed` nor mathematics; it exists to
reproduce published numbers and to show where `bandpo.reward.MathVerifier` differs.
"""

from __future__ import annotations

import re
from concurrent.futures import Future
from typing import TYPE_CHECKING

from bandpo.reward.futures import resolved
from bandpo.reward.score import Closing, Score

if TYPE_CHECKING:
    from bandpo.types import Group

WINDOW = 300

_ANSWER = re.compile(r"answer\s*:([^\n]+)", re.IGNORECASE)
_WRAPPED = re.compile(r"\\(?:text|textbf|mathrm|mbox|overline|boxed)\{([^{}]*)\}")
_DROPPED = re.compile(
    r"\\(?:left|right)(?![A-Za-z])|\\[,!; ]|\^\{?\\circ\}?|\\?%|\\?\$|[\s\"']"
    r"|(?:square|units?|inches|feet|cents|dollars|degrees|points|miles|minutes|hours|days|mph)\b"
)
_BARE_FRACTION = re.compile(r"\\[dt]?frac([^{\s])([^{\s])")
_BARE_ROOT = re.compile(r"\\sqrt([^{\[\s])")


def normalise(answer: str) -> str:
    """The comparable form: right of the last `=`, without wrappers, units, spaces and signs."""
    text = answer.rsplit("=", 1)[-1].strip().rstrip(".")
    while (unwrapped := _WRAPPED.sub(r"\1", text)) != text:
        text = unwrapped
    text = _BARE_FRACTION.sub(r"\\frac{\1}{\2}", text)
    text = _BARE_ROOT.sub(r"\\sqrt{\1}", text)
    text = re.sub(r"\\[dt]frac", r"\\frac", text)
    text = _DROPPED.sub("", text).rstrip(".")
    return text.replace(",", "") if text.replace(",", "").isdigit() else text


def string_score(completion: str, gold: str, correct: float = 1.0, wrong: float = -1.0) -> Score:
    """`correct` or `wrong` by the release's rule."""
    lines = _ANSWER.findall(completion[-WINDOW:])
    if not lines:
        return Score(wrong, "no_answer", None, 0.0)
    answer = lines[-1].strip()
    if normalise(answer) == normalise(gold):
        return Score(correct, "correct", answer, 0.0)
    return Score(wrong, "wrong", answer, 0.0)


class ReleaseReward(Closing):
    """`string_score` as a reward; needs no worker process."""

    name = "release"

    def __init__(self, *, correct: float = 1.0, wrong: float = -1.0) -> None:
        self.correct, self.wrong = correct, wrong

    def submit(self, group: Group) -> Future[list[Score]]:
        """Scores at once."""
        gold = group.problem.answer
        return resolved(
            [string_score(c.text, gold, self.correct, self.wrong) for c in group.completions]
        )
