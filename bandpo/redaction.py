"""Secrets stay out of what a run writes and says: the one place that knows what a secret is."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "(hidden)"
# A name that ends so, in whatever case: VLLM_API_KEY, hub_token, password. Not max_tokens.
_SECRET_NAME = re.compile(
    r"(^|[_.-])(token|secret|password|passwd|passphrase|credentials?|authorization"
    r"|(api|access|secret|private|auth)[_-]?key)$",
    re.IGNORECASE,
)
# What the common services give out, wherever it stands.
_SECRET_VALUE = re.compile(
    r"\bhf_[A-Za-z0-9]{20,}|\bsk-[A-Za-z0-9_-]{20,}|\bgh[pousr]_[A-Za-z0-9]{20,}"
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
)
_OVERRIDE = re.compile(r"([\w.-]+)=([^\s,={}\[\]()]+)")
_SHORTEST = 6
"""A shorter value in the environment is no key, and would blot out innocent text."""


def is_secret(name: str) -> bool:
    """Whether a setting or a variable of this name holds a secret."""
    return bool(_SECRET_NAME.search(name))


def redact(text: str) -> str:
    """The text without values of secret variables, of secret settings as overrides, and of keys."""
    for name, value in os.environ.items():
        if is_secret(name) and len(value) >= _SHORTEST:
            text = text.replace(value, HIDDEN)
    text = _OVERRIDE.sub(lambda m: f"{m[1]}={HIDDEN}" if is_secret(m[1]) else m[0], text)
    return _SECRET_VALUE.sub(HIDDEN, text)


def redacted(value: Any) -> Any:
    """A tree of settings with its secrets hidden: those by name, and known values in any text."""
    if isinstance(value, Mapping):
        return {
            key: HIDDEN if is_secret(str(key)) and item else redacted(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [redacted(item) for item in value]
    return redact(value) if isinstance(value, str) else value


class RedactingFormatter(logging.Formatter):
    """Formats a record, its traceback too, and hides the secrets in it."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))
