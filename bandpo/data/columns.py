"""Which columns of a row hold what, however deep they lie."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

ABSENT = object()
MOST_PATHS = 20  # named in a message
_PLAIN = re.compile(r"(?!(?:null|true|false|nan|inf)$)[A-Za-z_][\w.-]*", re.IGNORECASE)


class Columns(BaseModel):
    """Which columns hold what.

    A dot descends into structs, lists and JSON text: `reward_model.ground_truth`, or
    `prompt.0.content` where the prompt is a list of messages.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(
        default="id", description="unique id; rows without one get an id from their content"
    )
    problem: str = Field(default="problem", description="the question as text")
    answer: str = Field(default="answer", description="the reference answer as text or number")
    answer_pattern: str | None = Field(
        default=None,
        description="regular expression whose first group is the answer inside the column",
    )
    answer_in_box: bool = Field(
        default=False, description=r"the answer is the content of the column's last \boxed{}"
    )

    join_answers: bool = Field(
        default=False, description="a list is one answer, its parts joined by commas"
    )

    def but(self, named: Mapping[str, Any]) -> Columns:
        """These columns with others named; raises pydantic's `ValidationError` for bad names."""
        return Columns.model_validate({**self.model_dump(exclude_unset=True), **named})


def override(role: str, value: Any) -> str:
    """The words of a command line that name a role's column or say how the answer stands in it.

    Quoted for the shell, and within that for Hydra, where they must be.
    """
    text = str(value).lower() if isinstance(value, bool) else str(value)
    if isinstance(value, bool) or _PLAIN.fullmatch(text):
        return f"data.columns.{role}={text}"
    escaped = text.replace('"', r"\"")
    return shlex.quote(f'data.columns.{role}="{escaped}"')


def lookup(value: Any, path: str, absent: Any = None) -> Any:
    """The value at a column's path, or `absent`.

    A dot descends where no column has the full name: into mappings, by position into lists and
    arrays, and into either that a text holds as JSON.
    """
    if isinstance(value, str):
        value = _json(value)
    if isinstance(value, Mapping) and path in value:
        return value[path]
    head, _, rest = path.partition(".")
    if isinstance(value, Mapping):
        inner = value.get(head, absent)
    elif re.fullmatch(r"-?\d+", head) and hasattr(value, "__getitem__"):
        inner = value[int(head)] if -len(value) <= int(head) < len(value) else absent
    else:
        return absent
    return lookup(inner, rest, absent) if rest and inner is not absent else inner


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def paths(value: Any, path: str) -> Iterator[str]:
    """The paths that can be named inside a column's value."""
    if isinstance(value, str) and isinstance(_json(value), dict | list):
        value = _json(value)
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from paths(inner, f"{path}.{key}")
    elif hasattr(value, "__getitem__") and not isinstance(value, str):
        for index, inner in enumerate(value):
            yield from paths(inner, f"{path}.{index}")
    else:
        yield path


def inside(rows: Sequence[Mapping[str, Any]], column: str) -> list[str]:
    """The paths inside a nested column, to name where the given one does not exist."""
    head = column.partition(".")[0]
    values = (row[head] for row in rows if row.get(head) is not None)
    return [path for value in islice(values, 1) for path in islice(paths(value, head), MOST_PATHS)]
