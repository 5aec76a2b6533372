"""A manifest of checksums: what makes a folder of files a whole that can be trusted."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, TypedDict

from bandpo.disk.whole import flush_folder

MANIFEST = "manifest.json"


class Seal(TypedDict):
    """Size in bytes and BLAKE2b of a file."""

    bytes: int
    blake2b: str


def seal(folder: Path, files: Iterable[str]) -> dict[str, Seal]:
    """The seals of files below the folder, each flushed to the disk before."""
    return {name: _seal(folder / name) for name in files}


def _seal(path: Path) -> Seal:
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


def write_manifest(folder: Path, seals: Mapping[str, Seal]) -> None:
    """Writes manifest.json and flushes it and every folder below, so that all names last."""
    aside = folder / f".{MANIFEST}"
    with aside.open("w", encoding="utf-8") as file:
        json.dump(dict(sorted(seals.items())), file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(folder / MANIFEST)
    for path in (*(path for path in folder.rglob("*") if path.is_dir()), folder):
        flush_folder(path)


def read_manifest(folder: Path) -> dict[str, Seal]:
    """The manifest of a folder; OSError or ValueError where there is none that can be read."""
    return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))


def broken(folder: Path, seals: Mapping[str, Seal]) -> str | None:
    """What is wrong with the first file that is not as it was sealed; None where all are."""
    for name, expected in seals.items():
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
