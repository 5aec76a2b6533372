"""Columns of the field's training sets, recognised where the user names none.

GSM8K's question and answer, MATH's problem and solution, verl's prompt and reward_model, chats of
OpenAI's and ShareGPT's kind, Open-Reasoner-Zero's pairs, and others whose columns leave no choice.
Where they do, the choices are shown as overrides.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bandpo.data.columns import ABSENT, Columns, inside, lookup, override
from bandpo.errors import UserError

logger = logging.getLogger(__name__)

PROBLEMS = (
    ("question", "prompt", "query", "instruction"),
    ("messages", "conversations", "conversation", "0.value"),
)
ANSWERS = (
    ("reward_model.ground_truth", "ground_truth", "final_answer", "expected_answer"),
    ("solution",),
    ("1.ground_truth.value", "gt_answer", "gold_answer", "gold"),
)
"""Names in order: those of a group count where no row has one of an earlier group."""
WORKED = "solution"  # an answer alone in some sets, a worked solution in others
AFTER_HASHES = r"####\s*(.+)"  # GSM8K's, behind the worked solution
MOST_SHOWN = 8
LONGEST_ANSWER = 100
"""Characters of a `solution` that is an answer alone."""
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_LIST_OF_ONE = re.compile(r'\s*\[\s*"(?:[^"\\]|\\.)*"\s*\]\s*', re.DOTALL)

Rows = Sequence[Mapping[str, Any]]


def recognised(rows: Rows, columns: Columns, place: str) -> Columns:
    """The columns of problem and answer: those that are named, the usual ones, or a known layout's.

    Raises one `UserError` with the overrides that name a column where none can be told.
    """
    problems: list[str] = []
    found: dict[str, Any] = {}
    if not _present(rows, columns.problem):
        found |= _choice(rows, "problem", columns, PROBLEMS, problems)
    if not _present(rows, columns.answer):
        found |= _choice(rows, "answer", columns, ANSWERS, problems)
        if found.get("answer") == WORKED:
            found |= _worked(rows, problems)
        elif "answer" in found and _all_texts(rows, found["answer"], _LIST_OF_ONE.fullmatch):
            found["answer"] += ".0"  # Skywork-OR1's
    elif "problem" in found and _all_texts(rows, columns.answer, re.compile(AFTER_HASHES).search):
        found["answer_pattern"] = columns.answer_pattern or AFTER_HASHES
    if problems:
        names = ", ".join(sorted({name for row in rows for name in row}))
        raise UserError.join(f"{place} has the columns {names}", problems)
    if found:
        said = ", ".join(f"data.columns.{role}={name}" for role, name in found.items())
        logger.info("%s: read with %s", place, said)
    return columns.but(found)


def last_box(text: str) -> str | None:
    r"""The content of the last `\boxed{…}` of a text, brace-balanced; None where there is none."""
    for match in reversed(list(_BOX.finditer(text))):
        depth = 1
        for index in range(match.end(), len(text)):
            depth += {"{": 1, "}": -1}.get(text[index], 0) * (text[index - 1] != "\\")
            if depth == 0:
                return text[match.end() : index].strip() or None
    return None


def _present(rows: Rows, column: str) -> bool:
    return any(lookup(row, column, ABSENT) is not ABSENT for row in rows)


def _choice(
    rows: Rows,
    role: str,
    columns: Columns,
    known: Sequence[Sequence[str]],
    problems: list[str],
) -> dict[str, Any]:
    """The one column for a role; adds to `problems` where there is none, or more than one."""
    column = getattr(columns, role)
    groups = ([name for name in names if _present(rows, name)] for names in known)
    choices = [] if role in columns.model_fields_set else next(filter(None, groups), [])
    if len(choices) == 1:
        return {role: choices[0]}
    taken = {columns.id, columns.problem, columns.answer}
    names_left = sorted({name for row in rows for name in row} - taken)
    others = (choices or inside(rows, column) or names_left)[:MOST_SHOWN]
    ways = " or ".join(override(role, name) for name in others)
    problems.append(
        f"no column {column!r}; name the {role} with {ways or f'data.columns.{role}=…'}"
    )
    return {}


def _worked(rows: Rows, problems: list[str]) -> dict[str, Any]:
    """How the answer stands in `solution`: in the last box, or alone."""
    if _any_text(rows, WORKED, last_box):
        return {"answer_in_box": True}
    if is_alone(_texts(rows, WORKED)):
        return {}
    problems.append(
        rf"{WORKED} holds worked solutions without \boxed{{}}: write the answers into a column of "
        "their own, or say where they stand with data.columns.answer=solution and "
        "'data.columns.answer_pattern=\"answer is (.+)\"'"
    )
    return {}


def is_alone(texts: Sequence[str]) -> bool:
    """Whether texts are answers, each a short line, and no worked solutions."""
    return all(len(text) <= LONGEST_ANSWER and "\n" not in text for text in texts)


def _texts(rows: Rows, column: str) -> list[str]:
    values = (lookup(row, column) for row in rows)
    return [str(value) for value in values if value is not None]


def _all_texts(rows: Rows, column: str, holds: Callable[[str], Any]) -> bool:
    texts = _texts(rows, column)
    return bool(texts) and all(map(holds, texts))


def _any_text(rows: Rows, column: str, holds: Callable[[str], Any]) -> bool:
    return any(map(holds, _texts(rows, column)))
