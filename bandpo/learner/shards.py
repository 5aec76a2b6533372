"""DeepSpeed's part of a checkpoint: a full disk on one rank stops no other, and another number of
ranks can load it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from bandpo.cpu import usable_cores
from bandpo.errors import UserError
from bandpo.ranks.collectives import Ranks

ENGINE = "engine"
"""The folder of a checkpoint that holds DeepSpeed's shards."""


def save_engine(engine: Any, folder: Path, trained_only: bool) -> None:
    """Writes weights, optimizer and schedule into `folder`; collective.

    With `trained_only` without frozen weights. Raises OSError, when all ranks are done, on those
    that could not write their part.
    """
    with _failing_last(engine):
        engine.save_checkpoint(
            str(folder), tag=ENGINE, save_latest=False, exclude_frozen_parameters=trained_only
        )


def load_engine(
    engine: Any, folder: Path, ranks: Ranks, saved_ranks: int, trained_only: bool
) -> None:
    """Restores what `saved_ranks` ranks saved: bitwise on as many ranks, else up to rounding.

    Collective. Raises UserError for a checkpoint that these ranks cannot load.
    """
    stage = engine.zero_optimization_stage()
    reshape = saved_ranks != ranks.size and stage > 0
    with _loadable(folder / ENGINE, ranks, reshape) as shards:
        engine._config.load_universal_checkpoint = reshape
        loaded, _ = engine.load_checkpoint(
            str(shards.parent), tag=shards.name, load_module_strict=not trained_only
        )
    if loaded is None:
        raise UserError(
            f"{folder / ENGINE} cannot be loaded with {ranks.size} rank(s) and ZeRO stage "
            f"{stage}; use the settings it was saved with"
        )


@contextmanager
def _failing_last(engine: Any) -> Iterator[None]:
    """While DeepSpeed saves, a write that fails raises its OSError only at the end of the block.

    Saving is collective: a rank that left in the middle would leave the others waiting.
    """
    writer = _Writer(engine.checkpoint_engine)
    usual, engine.checkpoint_engine = engine.checkpoint_engine, writer
    # The first rank copies a script beside the shards, between two barriers.
    engine._copy_recovery_script = writer.remembering(engine._copy_recovery_script)
    try:
        yield
    finally:
        engine.checkpoint_engine = usual
        del engine._copy_recovery_script
    if writer.error is not None:
        raise writer.error


class _Writer:
    """DeepSpeed's checkpoint engine, which keeps the first error of a write instead of raising."""

    def __init__(self, usual: Any) -> None:
        self._usual = usual
        self.error: OSError | None = None
        self.makedirs = self.remembering(usual.makedirs)
        self.save = self.remembering(self._save)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._usual, name)

    def remembering(self, action: Callable[..., None]) -> Callable[..., None]:
        def quiet(*arguments: Any, **settings: Any) -> None:
            try:
                action(*arguments, **settings)
            except OSError as error:
                self.error = self.error or error

        return quiet

    def _save(self, state_dict: Any, path: str) -> None:
        with _ShardFile(path) as file:
            torch.save(state_dict, file)
        if file.error is not None:
            raise file.error


class _ShardFile:
    """A file that discards everything after its first error.

    torch's C++ writer would turn the error into a RuntimeError without the cause.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self.error: OSError | None = None

    def __enter__(self) -> _ShardFile:
        self._file = open(self._path, "wb", buffering=0)
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while self.error is None and len(rest):
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self.error = error
        return size

    def flush(self) -> None:
        """Nothing is buffered."""


@contextmanager
def _loadable(engine: Path, ranks: Ranks, reshape: bool) -> Iterator[Path]:
    """The shards of a saved engine in the form that this job's ranks can load; collective.

    With `reshape`, for another number of ranks than saved them, that is DeepSpeed's universal
    checkpoint, made by the first rank beside the checkpoint and removed afterwards. Raises
    UserError where it cannot be made.
    """
    if not reshape:
        yield engine
        return
    target = engine.parent.with_name(f".{engine.parent.name}.universal") / ENGINE
    try:
        ranks.on_first(lambda: _convert(engine, target))
        yield target
        ranks.barrier()
    except OSError as error:
        raise UserError(
            f"{engine} could not be converted for another number of ranks: {error}; use the number "
            "of ranks that it was saved with"
        ) from None
    finally:
        if ranks.is_first:
            shutil.rmtree(target.parent, ignore_errors=True)


def _convert(engine: Path, target: Path) -> None:
    """DeepSpeed's own converter, in a process of its own; raises OSError where it fails."""
    shutil.rmtree(target.parent, ignore_errors=True)
    target.mkdir(parents=True)
    workers = str(min(4, usable_cores()))
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal"]
    command += ["--input_folder", str(engine), "--output_folder", str(target)]
    # Stages 1 and 2 save no description of tensor parallelism, which this learner does not use.
    command += ["--inject_missing_state"]
    command += ["--num_extract_workers", workers, "--num_merge_workers", workers]
    done = subprocess.run(command, capture_output=True)
    if done.returncode:
        output = done.stderr.decode(errors="replace").strip() or "no message"
        raise OSError(output.splitlines()[-1])
