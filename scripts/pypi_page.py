"""The project's page on a package index: README.md without the links that lead nowhere there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

# An image or a link whose target is a path of the repository, and what it is called.
OWN = re.compile(r"(!?)\[((?:!\[[^\]]*\]\([^)]*\)|[^\]])*)\]\((?!https?://)[^)]*\)")


def page(readme: str) -> str:
    """The text with its own pictures removed and its own links reduced to what they are called.

    An index has no files of the repository, whose address a package does not know.
    """
    return OWN.sub(lambda link: "" if link[1] else link[2], readme)


class PyPIPage(MetadataHookInterface):
    """Hatchling's hook for `[project] readme`."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Sets the readme of the metadata."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": page(text)}
