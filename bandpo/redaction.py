"""Keeps secrets out of files and messages; defines what counts as a secret."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "(hidden)"
# Names with these endings, in any case: VLLM_API_KEY, hub_token, password. Not max_tokens.
_SECRET_NAME = re.compile(
    r"(^|[_.-])(token|secret|password|passwd|passphrase|credentials?|authorization"
    r"|(api|access|secret|private|auth)[_-]?key)$",
    re.IGNORECASE,
)
# Keys in the formats of common services, anywhere in a text.
_SECRET_VALUE = re.compile(
    r"\bhf_[A-Za-z0-9]{20,}|\bsk-[A-Za-z0-9_-]{20,}|\bgh[pousr]_[A-Za-z0-9]{20,}"
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
)
# It begins where a name does, and gives nothing back: a megabyte of letters is read once.
_OVERRIDE = re.compile(r"(?<![\w.-])([\w.-]++)=([^\s,={}\[\]()]+)")
_SHORTEST = 6
"""Shorter values in the environment are no keys, and would hide harmless text."""


def is_secret(name: str) -> bool:
    """Whether a setting or a variable of this name holds a secret."""
    return bool(_SECRET_NAME.search(name))


def redact(text: str) -> str:
    """The text without values of secret variables, values of secret overrides, and keys."""
    for name, value in os.environ.items():
        if is_secret(name) and len(value) >= _SHORTEST:
            text = text.replace(value, HIDDEN)
    text = _OVERRIDE.sub(lambda m: f"{m[1]}={HIDDEN}" if is_secret(m[1]) else m[0], text)
    return _SECRET_VALUE.sub(HIDDEN, text)


def redacted(value: Any) -> Any:
    """A tree of settings without secrets: those with a secret's name, and those within any text."""
    if isinstance(value, Mapping):
        return {
            key: HIDDEN if is_secret(str(key)) and item else redacted(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [redacted(item) for item in value]
    return redact(value) if isinstance(value, str) else value


class RedactingFormatter(logging.Formatter):
    """Formats a record, its traceback too, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))
