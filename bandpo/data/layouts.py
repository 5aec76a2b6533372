"""Columns of the field's training sets, recognised where the user names none.

GSM8K's question and answer, MATH's problem and solution, verl's prompt and reward_model, and
others whose columns leave no choice. Where they do, the choices are shown as overrides.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bandpo.data.columns import ABSENT, Columns, inside, lookup
from bandpo.data.readers import RowFault
from bandpo.errors import UserError

logger = logging.getLogger(__name__)

PROBLEMS = ("question", "prompt", "query", "instruction")
ANSWERS = ("reward_model.ground_truth", "ground_truth", "final_answer", "expected_answer")
WORKED = "solution"  # an answer alone in some sets, a worked solution in others
AFTER_HASHES = r"####\s*(.+)"  # GSM8K's, behind the worked solution
MOST_SHOWN = 8
LONGEST_ANSWER = 100
"""Characters of a `solution` that is an answer alone."""
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")

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
        found |= _choice(rows, "answer", columns, _answers(rows), problems)
        if found.get("answer") == WORKED:
            found |= _worked(rows, problems)
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


def is_conversation(value: Any) -> bool:
    """Whether a value is a list of messages with role and content."""
    return (
        hasattr(value, "__len__")
        and not isinstance(value, str | Mapping)
        and len(value) > 0
        and all(isinstance(item, Mapping) and {"role", "content"} <= item.keys() for item in value)
    )


def user_turn(messages: Sequence[Mapping[str, Any]], column: str) -> Any:
    """The content of a conversation's one turn, the user's.

    Raises `RowFault` for other conversations: a prompt is one user turn.
    """
    roles = [str(message["role"]) for message in messages]
    if roles == ["user"]:
        return messages[0]["content"]
    if roles.count("user") == 1 and set(roles) == {"system", "user"}:
        place = f"{column}.{roles.index('user')}.content"
        raise RowFault(
            f"problem ({column}) begins with a system message, which prompts here do not have; "
            f"data.columns.problem={place} sends the user's turn without it"
        )
    raise RowFault(
        f"problem ({column}) is a conversation of {len(roles)} messages ({', '.join(roles)}); a "
        "prompt here is a single user turn"
    )


def _present(rows: Rows, column: str) -> bool:
    return any(lookup(row, column, ABSENT) is not ABSENT for row in rows)


def _answers(rows: Rows) -> tuple[str, ...]:
    """Columns that hold answers by their name; worked solutions count where there are no others."""
    return ANSWERS if any(_present(rows, name) for name in ANSWERS) else (WORKED,)


def _choice(
    rows: Rows, role: str, columns: Columns, names: Sequence[str], problems: list[str]
) -> dict[str, Any]:
    """The one column for a role; adds to `problems` where there is none, or more than one."""
    column = getattr(columns, role)
    choices = [] if role in columns.model_fields_set else [n for n in names if _present(rows, n)]
    if len(choices) == 1:
        return {role: choices[0]}
    taken = {columns.id, columns.problem, columns.answer}
    names_left = sorted({name for row in rows for name in row} - taken)
    others = (choices or inside(rows, column) or names_left)[:MOST_SHOWN]
    ways = " or ".join(f"data.columns.{role}={name}" for name in others)
    problems.append(
        f"no column {column!r}; name the {role} with {ways or f'data.columns.{role}=…'}"
    )
    return {}


def _worked(rows: Rows, problems: list[str]) -> dict[str, Any]:
    """How the answer stands in `solution`: in the last box, or alone."""
    if _any_text(rows, WORKED, last_box):
        return {"answer_in_box": True}
    if _all_texts(rows, WORKED, lambda text: len(text) <= LONGEST_ANSWER and "\n" not in text):
        return {}
    problems.append(
        rf"{WORKED} holds worked solutions without \boxed{{}}: write the answers into a column of "
        "their own, or say where they stand with data.columns.answer=solution and "
        "'data.columns.answer_pattern=\"answer is (.+)\"'"
    )
    return {}


def _texts(rows: Rows, column: str) -> list[str]:
    values = (lookup(row, column) for row in rows)
    return [str(value) for value in values if value is not None]


def _all_texts(rows: Rows, column: str, holds: Callable[[str], Any]) -> bool:
    return all(map(holds, _texts(rows, column)))


def _any_text(rows: Rows, column: str, holds: Callable[[str], Any]) -> bool:
    return any(map(holds, _texts(rows, column)))
