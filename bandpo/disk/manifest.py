"""A manifest of checksums, which shows whether a folder is complete and undamaged."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, TypedDict

from bandpo.disk.whole import flush_folder, write_atomically

MANIFEST = "manifest.json"


class Checksum(TypedDict):
    """Size in bytes and BLAKE2b of a file."""

    bytes: int
    blake2b: str


def checksums(folder: Path, files: Iterable[str]) -> dict[str, Checksum]:
    """The checksums of files below the folder, each flushed to the disk before it is read."""
    return {name: _checksum(folder / name) for name in files}


def _checksum(path: Path) -> Checksum:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return {"bytes": os.fstat(file.fileno()).st_size, "blake2b": _digest(file)}


def _digest(file: IO[bytes]) -> str:
    return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=20)).hexdigest()  # type: ignore


def files_below(folder: Path) -> list[str]:
    """Every file below the folder but its manifest, the largest first."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    paths.sort(key=lambda path: (-path.stat().st_size, path))
    return [name for path in paths if (name := str(path.relative_to(folder))) != MANIFEST]


def write_manifest(folder: Path, sums: Mapping[str, Checksum]) -> None:
    """Writes manifest.json and flushes every folder below, so that all file names are durable."""
    write_atomically(folder / MANIFEST, json.dumps(dict(sorted(sums.items())), indent=1))
    for path in (*(path for path in folder.rglob("*") if path.is_dir()), folder):
        flush_folder(path)


def read_manifest(folder: Path) -> dict[str, Checksum]:
    """The manifest of a folder; raises OSError or ValueError where none can be read."""
    return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))


def mismatch(folder: Path, sums: Mapping[str, Checksum]) -> str | None:
    """The first file that differs from its checksum, and how; None where all agree."""
    for name, expected in sums.items():
        path = folder / name
        try:
            size = path.stat().st_size
            if size != expected["bytes"]:
                return f"{name} has {size} bytes instead of {expected['bytes']}"
            with path.open("rb") as file:
                digest = _digest(file)
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
        if digest != expected["blake2b"]:
            return f"the checksum of {name} is wrong"
    return None
