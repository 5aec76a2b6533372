"""The files of a model folder: whether they are complete, and a fingerprint over all of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from bandpo.errors import UserError

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FLOATING = {"F64", "F32", "F16", "BF16"}
TEXTS = (".json", ".jinja", ".model", ".tiktoken", ".txt")  # tokenizers and settings
PICKLES = (".bin", ".pt", ".pth")
PART = 1 << 26  # bytes of a file that one thread hashes at a time
_BUFFER = 1 << 20


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that transformers would read; some of them may be missing.

    Raises UserError for an index that cannot be read.
    """
    if (folder / WHOLE).exists():
        return [folder / WHOLE]
    if not (folder / INDEX).exists():
        return sorted(folder.glob("*.safetensors"))
    refuse_pointers([folder / INDEX])
    try:
        names = set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{folder / INDEX} is no index of weights: {error!r}") from None
    return [folder / name for name in sorted(names)]


def check_files(folder: Path) -> None:
    """Raises UserError for a git-lfs pointer, a missing shard, or a truncated safetensors file."""
    weights = weight_files(folder)
    texts = (path for path in sorted(folder.iterdir()) if path.suffix in TEXTS)
    refuse_pointers([*texts, *weights])
    for path in weights:
        if not path.exists():
            raise UserError(
                f"{folder / INDEX} names {path.name}, which is missing: download it again"
            )
        try:
            with safe_open(path, "pt"):
                pass
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{path} is truncated or no safetensors file ({error}): download it again"
            ) from None


def refuse_pointers(paths: Iterable[Path]) -> None:
    """Raises UserError for a file that is only git-lfs's pointer to it."""
    for path in paths:
        if path.is_file() and _is_pointer(path):
            raise UserError(
                f"{path} is a git-lfs pointer, not the file itself: run `git lfs pull` in its "
                "folder, or download it"
            )


def _is_pointer(path: Path) -> bool:
    with path.open("rb") as file:
        beginning = file.read(256)
    return beginning.startswith(b"version https://") and b"\noid sha256:" in beginning


def refuse_quantised(path: str | Path, config: Any) -> None:
    """Raises UserError for weights that are not floating-point numbers of 16 bits or more.

    `config` is transformers'. Weights of a hub id are checked when they are loaded.
    """
    settings = getattr(config, "quantization_config", None)
    if settings is not None:
        found = settings if isinstance(settings, dict) else settings.to_dict()
        raise _quantised(path, f"quantization_config in config.json ({found.get('quant_method')})")
    if not Path(path).is_dir():
        return
    for file in weight_files(Path(path)):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (no mapping)
                if (
                    name.endswith("weight")
                    and (kind := tensors.get_slice(name).get_dtype()) not in FLOATING
                ):
                    raise _quantised(path, f"{name} in {file.name} is of type {kind}")


def _quantised(path: str | Path, why: str) -> UserError:
    return UserError(
        f"model.path={path}: the weights are quantised: {why}. They cannot be trained: choose the "
        "checkpoint in bfloat16 or float32 that they were made from"
    )


def weights_fingerprint(folder: Path) -> str:
    """A hash over the names and the whole content of weights, configuration, tokenizer and code.

    All files of the folder count except hidden ones and Markdown. They are read on all cores, about
    1 GB/s on each, and stay in the page cache for the engine that loads them next. No digest is
    kept: size, time and inode of a file can stay the same when its content changes. Raises
    UserError for a folder without weights or a file that cannot be read.
    """
    files = sorted(_loaded_files(folder))
    if not any(path.suffix in (".safetensors", *PICKLES) for path in files):
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
