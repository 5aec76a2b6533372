#!/usr/bin/env python3
"""Executes docs/first_run.ipynb in an empty folder and keeps its outputs; run it after a change."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "docs" / "first_run.ipynb"
CELL_S = 3600  # at most, however busy the machine


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """In their order."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def fingerprint(notebook: NotebookNode) -> str:
    """SHA-256 of the code: the saved outputs are those of the code that has it."""
    sources = "\0".join(cell.source for cell in code_cells(notebook))
    return hashlib.sha256(sources.encode()).hexdigest()


def executed(folder: Path) -> NotebookNode:
    """The notebook with this checkout's outputs, started in `folder`; raises where a cell does."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    notebook.metadata["outputs_of"] = fingerprint(notebook)
    client = NotebookClient(
        notebook,
        timeout=CELL_S,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env={**os.environ, "PYTHONPATH": str(ROOT)})
    return notebook


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        nbformat.write(executed(Path(folder)), NOTEBOOK)
    print(f"{NOTEBOOK}: {NOTEBOOK.stat().st_size / 1024:.0f} KiB with its outputs")
