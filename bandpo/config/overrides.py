"""Quotes values that hydra would read as syntax."""

from __future__ import annotations

import re
import shlex

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

OPEN = ("data.chat_template_kwargs", "eval.chat_template_kwargs")
"""Mappings whose keys the user chooses."""
REPLACED = ("data.train", *OPEN)
_BRACKETS = re.compile(r"([\[\]{},])")


def is_understood(override: str) -> bool:
    """Whether hydra's grammar has such an override."""
    try:
        OverridesParser.create().parse_override(override)
    except HydraException:
        return False
    return True


def is_sweep(override: str) -> bool:
    """Whether hydra reads several values in it, each for a run of its own."""
    parsed = OverridesParser.create().parse_override(override) if is_understood(override) else None
    return parsed is not None and parsed.is_sweep_override()


def replaced(override: str) -> list[str]:
    """The overrides with which `data.train={…}` replaces the default, and with which a key is set
    or added in a mapping whose keys the user chooses.

    Hydra would merge the mapping into the default one, which is a source of another kind.
    """
    key, _, value = override.partition("=")
    if key in REPLACED and value.startswith("{"):
        return [f"~{key}", f"+{override}"]
    if key.startswith(tuple(f"{mapping}." for mapping in OPEN)):
        return [f"++{override}"]
    return [override]


def as_text(override: str) -> str:
    r"""The override with its whole value as text: `a=b=c` is `a="b=c"`."""
    key, _, value = override.partition("=")
    return f"{key}={_quoted(value)}"


def meant(override: str) -> str | None:
    """An override that hydra does not understand, quoted; None where quotes do not help.

    In a list or mapping only the parts that need it are quoted: `[a=b,c]` becomes `["a=b",c]`.
    """
    key, equals, value = override.partition("=")
    if not equals:
        return None
    in_brackets = value[:1] + value[-1:] in ("[]", "{}")
    candidates = [f"{key}={_with_quoted_parts(value)}"] if in_brackets else []
    return next(filter(is_understood, [*candidates, as_text(override)]), None)


def in_shell(override: str) -> str:
    """The hint that shows this override quoted for the shell."""
    return f"in quotes, for hydra and for the shell, it is text: {shlex.quote(override)}"


def verbatim(key: str, text: str) -> str:
    r"""`key=text` with which the schema gets every character, quotes, backslashes and `${` too."""
    escaped = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)  # an interpolation of OmegaConf otherwise
    return f"{key}={_quoted(escaped)}"


def _with_quoted_parts(value: str) -> str:
    open_brackets: list[str] = []
    parts = []
    for part in _BRACKETS.split(value):
        if part in ("[", "{"):
            open_brackets.append(part)
        elif part in ("]", "}") and open_brackets:
            open_brackets.pop()
        elif part.strip() and part != ",":
            in_mapping = open_brackets[-1:] == ["{"]
            name, colon, rest = part.partition(":") if in_mapping else ("", "", part)
            part = name + colon + _quoted_where_needed(rest)
        parts.append(part)
    return "".join(parts)


def _quoted_where_needed(text: str) -> str:
    inner = text.strip()
    if not inner or is_understood(f"key={inner}"):
        return text
    return text.replace(inner, _quoted(inner))


def _quoted(text: str) -> str:
    """The text in double quotes; hydra reads backslashes as escapes only before a quote."""
    text = re.sub(r'(\\*)"', r'\1\1\\"', text)
    text = re.sub(r"(\\+)$", r"\1\1", text)
    return f'"{text}"'
