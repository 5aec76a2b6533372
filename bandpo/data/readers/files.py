"""The files that a path means, and the reader of each: one file, a folder of shards, a pattern."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from glob import glob
from pathlib import Path
from typing import Any

from bandpo.data.readers.json_text import json_rows
from bandpo.data.readers.opening import COMPRESSED
from bandpo.data.readers.separated import comma_rows, tab_rows
from bandpo.data.readers.tables import arrow_rows, parquet_rows
from bandpo.disk.paths import is_pattern
from bandpo.errors import UserError

Reader = Callable[[Path], Iterator[tuple[str, Any]]]

TEXTS: dict[str, Reader] = {
    ".jsonl": json_rows,
    ".json": json_rows,
    ".ndjson": json_rows,
    ".csv": comma_rows,
    ".tsv": tab_rows,
}
"""By extension; these may be compressed."""
READERS: dict[str, Reader] = TEXTS | {".parquet": parquet_rows, ".arrow": arrow_rows}
_SPLIT = re.compile(r"(?:^|[-_./])(train|test|validation|valid|val|dev|eval)(?=[-_./\d]|$)")


def is_data_file(path: str | Path) -> bool:
    """Whether a file with this name, or files that match this pattern, can be read as rows."""
    return _format(Path(path)) is not None


def name_of(path: Path) -> str:
    """A dataset's name: that of its file without extensions, of its folder, or of its pattern."""
    kept = path.with_suffix("") if path.suffix.lower() in COMPRESSED else path
    if path.exists() or not is_pattern(str(path)):
        return kept.stem or path.resolve().name
    return re.sub(r"\W*[*?\[\]]+\W*", "", kept.stem) or name_of(path.parent)


def file_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """The rows of a file, of a folder's files or of a pattern's; raises `UserError` without any."""
    for file in [path] if path.is_file() else _files(path):
        extension = _format(file)
        if extension is None:
            raise UserError(
                f"{file}: unknown extension {file.suffix!r}; use one of "
                f"{', '.join(sorted(READERS))}, of which text may be compressed "
                f"({', '.join(COMPRESSED)})"
            )
        rows = READERS[extension](file)
        if file == path:
            yield from rows
        else:
            yield from ((f"{file.name} {place}", row) for place, row in rows)


def _format(path: Path) -> str | None:
    """The extension that tells how a file is read; None for one that is not known."""
    extension = path.suffix.lower()
    if extension in COMPRESSED:
        inner = path.with_suffix("").suffix.lower()
        return inner if inner in TEXTS else None
    return extension if extension in READERS else None


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return _shards(path)
    if is_pattern(str(path)):
        found = sorted(Path(name) for name in glob(str(path), recursive=True))
        if files := [file for file in found if file.is_file()]:
            return files
        raise UserError(f"{path}: no file matches")
    raise UserError(f"{path}: no such file")


def _shards(folder: Path) -> list[Path]:
    """The data files of a folder, all of one format and one split, in order of their names."""
    if splits := _json(folder / "dataset_dict.json").get("splits"):
        raise UserError(f"{folder}: holds several splits: {_either(folder, splits)}")
    if saved := _json(folder / "state.json").get("_data_files"):  # datasets' save_to_disk
        return [folder / part["filename"] for part in saved]
    found = (file.relative_to(folder) for file in sorted(folder.rglob("*")) if file.is_file())
    names = [name for name in found if is_data_file(name) and not _is_hidden(name)]
    if not names:
        raise UserError(f"{folder}: is a folder without data files ({', '.join(sorted(READERS))})")
    kinds: dict[Any, list[Path]] = {}
    for name in names:
        kinds.setdefault((_split(name), _format(name)), []).append(name)
    if len(kinds) > 1:
        each = [_pattern(folder, split, end, own) for (split, end), own in kinds.items()]
        raise UserError(f"{folder}: holds several splits or formats: {_either(folder, each)}")
    return [folder / name for name in names]


def _is_hidden(name: Path) -> bool:
    return any(part.startswith(".") for part in name.parts)


def _json(path: Path) -> Mapping[str, Any]:
    """The object in a file; empty where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, Mapping) else {}


def _either(folder: Path, names: Sequence[str]) -> str:
    return "name " + " or ".join(f"data.train='{folder / name}'" for name in names)


def _split(name: Path) -> str | None:
    found = _SPLIT.search(name.with_suffix("").as_posix())
    return found.group(1) if found else None


def _pattern(folder: Path, split: str | None, extension: str, files: Sequence[Path]) -> str:
    """A pattern within the folder that these of its files alone match; else the first of them."""
    wanted = {folder / file for file in files}
    tried = [f"**/*{split}*{extension}*", f"**/*{split}*/**/*{extension}*", f"**/*{extension}*"]
    fits = (pattern for pattern in tried if set(folder.glob(pattern)) == wanted)
    return next(fits, str(files[0]))
