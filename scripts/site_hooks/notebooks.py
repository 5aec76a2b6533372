"""Shows notebooks of docs/ as pages: text, code and the outputs they were saved with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

FENCE = "~~~~~~"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds a page `<name>.md` for each `<name>.ipynb`, which stays beside it for download."""
    for file in list(files):
        if file.src_uri.endswith(".ipynb") and file.abs_src_path:
            notebook = json.loads(Path(file.abs_src_path).read_text(encoding="utf-8"))
            uri = file.src_uri.removesuffix(".ipynb") + ".md"
            content = "\n\n".join(_page(notebook, Path(file.src_uri).name))
            files.append(File.generated(config, uri, content=content))
    return files


def _page(notebook: dict[str, Any], name: str) -> Iterator[str]:
    for index, cell in enumerate(notebook["cells"]):
        source = _text(cell["source"])
        if cell["cell_type"] == "markdown":
            yield source
        elif cell["cell_type"] == "code":
            yield f"{FENCE}python\n{source}\n{FENCE}"
            yield from (_output(output, name) for output in cell["outputs"])
        if index == 0:
            yield f"The notebook itself: [{name}]({name})"


def _output(output: dict[str, Any], name: str) -> str:
    data = output.get("data", {})
    if "image/png" in data:
        encoded = _text(data["image/png"]).replace("\n", "")
        return f'<img alt="" src="data:image/png;base64,{encoded}">'
    if output["output_type"] == "error":
        raise ValueError(
            f"{name}: a cell was saved with an error: {output['ename']}: {output['evalue']}"
        )
    text = _text(output.get("text") or data.get("text/plain", ""))
    return f"{FENCE}text\n{text.rstrip()}\n{FENCE}"


def _text(lines: str | list[str]) -> str:
    return "".join(lines)
