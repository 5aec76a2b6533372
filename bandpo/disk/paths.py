"""Whether a text that may name a file, a folder or something on a hub means a path."""

from __future__ import annotations

import re

# Extensions of data, weights, settings and archives; a hub's names end in others (Qwen2.5-3B).
_FILE = re.compile(
    r".+\.(jsonl?|ndjson|parquet|arrow|csv|tsv|txt|ya?ml|jinja|safetensors|bin|pth?|gguf"
    r"|zst|gz|bz2|zip|tar)",
    re.IGNORECASE,
)
_WILDCARDS = re.compile(r"[*?\[]")


def looks_like_path(text: str) -> bool:
    """Whether no hub has such a name: it starts as a path does, is deep, or ends as a file does."""
    return (
        text.startswith(("./", "../", "/", "~", ".\\"))
        or text in (".", "..")
        or text.count("/") > 1
        or bool(_FILE.fullmatch(text))
        or is_pattern(text)
    )


def is_pattern(text: str) -> bool:
    """Whether a text has wildcards, which no hub's name has."""
    return bool(_WILDCARDS.search(text))
