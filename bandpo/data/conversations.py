"""Conversations in a dataset's column: lists of messages become turns and a last user turn."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from bandpo.data.readers import RowFault
from bandpo.types import Problem, Turn

Messages = Sequence[Mapping[str, Any]]

ROLES: dict[str, Literal["system", "user", "assistant"]] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
"""The usual names of roles, and ShareGPT's."""
_KEYS = (("role", "content"), ("from", "value"))


def messages_in(value: Any) -> Messages | None:
    """A column's value as messages, from a list, an array or JSON text; None if it is none."""
    if isinstance(value, str):
        value = _list_in(value)
    if not hasattr(value, "__len__") or isinstance(value, str | Mapping) or len(value) == 0:
        return None
    return value if all(map(_keys_of, value)) else None


def conversation(messages: Messages, column: str) -> tuple[tuple[Turn, ...], str]:
    """The turns before a conversation's last user turn, and that turn's text.

    Raises `RowFault` where it does not end with a user turn, or holds more than text.
    """
    names = [_role(message, column) for message in messages]
    if "system" in names[1:]:
        raise RowFault(f"problem ({column}) has a system turn that is not its first")
    if names[-1] != "user":
        raise RowFault(_without_question(names, messages, column))
    turns = [
        Turn(name, _text(message, f"{column}.{index}"))
        for index, (name, message) in enumerate(zip(names, messages, strict=True))
    ]
    return tuple(turns[:-1]), turns[-1].content


def as_column(problem: Problem) -> str | list[dict[str, str]]:
    """The value of a problem column from which the problem and its turns are read again."""
    if not problem.turns:
        return problem.problem
    turns = [*problem.turns, Turn("user", problem.problem)]
    return [{"role": turn.role, "content": turn.content} for turn in turns]


def spoken(turns: Iterable[Turn]) -> list[str]:
    """Roles and contents of turns, one after another."""
    return [part for turn in turns for part in (turn.role, turn.content)]


def _list_in(text: str) -> Any:
    if not text.lstrip().startswith("["):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _keys_of(message: Any) -> tuple[str, str] | None:
    """The keys of role and content in a message; None for another value."""
    if not isinstance(message, Mapping):
        return None
    return next((keys for keys in _KEYS if message.keys() >= set(keys)), None)


def _role(message: Mapping[str, Any], column: str) -> Literal["system", "user", "assistant"]:
    role, _ = _keys_of(message) or _KEYS[0]
    name = str(message[role]).lower()
    if name not in ROLES:
        raise RowFault(
            f"problem ({column}) has a turn of {message[role]!r}; there are {', '.join(ROLES)}"
        )
    return ROLES[name]


def _without_question(names: Sequence[str], messages: Messages, column: str) -> str:
    if "user" not in names:
        return f"problem ({column}) has no user turn"
    last = len(names) - 1 - names[::-1].index("user")
    _, content = _keys_of(messages[last]) or _KEYS[0]
    return (
        f"problem ({column}) ends with a turn of the {names[-1]}, where a problem ends with the "
        f"user's; data.columns.problem={column}.{last}.{content} takes that turn alone"
    )


def _text(message: Mapping[str, Any], place: str) -> str:
    """A message's text; of a list of parts the texts, a line each."""
    _, key = _keys_of(message) or _KEYS[0]
    content = message[key]
    if message.get("tool_calls") is not None and len(message["tool_calls"]):
        raise RowFault(f"problem ({place}) calls tools, which prompts here do not have")
    if isinstance(content, str):
        text = content
    elif hasattr(content, "__len__") and not isinstance(content, Mapping):
        text = "\n".join(_part(part, f"{place}.{key}") for part in content)
    else:
        raise RowFault(f"problem ({place}.{key}) is not text but {type(content).__name__}")
    if not text.strip():
        raise RowFault(f"problem ({place}.{key}) is empty")
    return text


def _part(part: Any, place: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    if kind != "text" or not isinstance(part.get("text"), str):
        raise RowFault(f"problem ({place}) holds a part of type {kind!r}; only text is sent")
    return str(part["text"])
