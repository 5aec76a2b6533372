"""What tells one model folder from another: a hash over all that a model is loaded from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bandpo.errors import UserError

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
PART = 1 << 26  # bytes of a file that one thread hashes at a time
_BUFFER = 1 << 20


def weights_fingerprint(folder: Path) -> str:
    """A hash over the names and the whole content of weights, configuration, tokenizer and code.

    Every file of the folder counts but hidden ones and Markdown. It is read on all cores, about
    a GB a second on each, and stays in the page cache for the engine that loads it next. No
    digest is kept for later: size, time and inode of a file can stay when its content changes.
    Raises `UserError` for a folder without weights or a file that cannot be read.
    """
    files = sorted(_loaded_files(folder))
    if not any(path.suffix in WEIGHTS for path in files):
        raise UserError(f"model={folder}: no weights (*.safetensors) in this folder")
    parts = [part for path in files for part in _parts(path)]
    digest = hashlib.sha256()
    with ThreadPoolExecutor() as pool:
        for (path, start), found in zip(parts, pool.map(_hashed, parts), strict=True):
            digest.update(f"{path.relative_to(folder)}:{start}:".encode() + found)
    return digest.hexdigest()[:16]


def _loaded_files(folder: Path) -> Iterator[Path]:
    """The files that transformers may read; further chat templates have a folder of their own."""
    for place in (folder, folder / "additional_chat_templates"):
        for path in place.glob("*"):
            if path.is_file() and path.suffix != ".md" and not path.name.startswith("."):
                yield path


def _parts(path: Path) -> Iterator[tuple[Path, int]]:
    """The file's parts by their first byte; an empty file has one."""
    for start in range(0, max(1, path.stat().st_size), PART):
        yield path, start


def _hashed(part: tuple[Path, int]) -> bytes:
    path, start = part
    digest = hashlib.sha256()
    left = PART
    try:
        with path.open("rb") as file:
            file.seek(start)
            while left and (data := file.read(min(left, _BUFFER))):
                digest.update(data)
                left -= len(data)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    return digest.digest()
