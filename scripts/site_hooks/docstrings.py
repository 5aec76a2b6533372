"""Lays docstrings out as Markdown: columns of fields as lists, sources on lines of their own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from griffe import Extension, Object

FIELD = re.compile(r"(\S+(?:, \S+)*) {2,}(\S.*)")
SOURCE = re.compile(r"(?:^|(?<=\.) )Source: ", re.MULTILINE)


class Laid(Extension):
    """For mkdocstrings: the docstrings of this project, which are read as plain text elsewhere."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rewrites the docstring of a class, function or attribute."""
        if obj.docstring:
            paragraphs = re.split(r"\n\s*\n", SOURCE.sub("\n\n*Source:* ", obj.docstring.value))
            obj.docstring.value = "\n\n".join(map(_paragraph, paragraphs))


def _paragraph(text: str) -> str:
    """A paragraph, as a list where its lines are a name, two spaces or more, and its meaning."""
    if not FIELD.match(text):
        return text
    return "\n".join(_items(text.splitlines()))


def _items(lines: list[str]) -> Iterator[str]:
    for line in lines:
        if found := FIELD.match(line):
            names = ", ".join(f"`{name}`" for name in found[1].split(", "))
            yield f"- {names}: {found[2]}"
        else:
            yield f"    {line.strip()}"
