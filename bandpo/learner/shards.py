"""DeepSpeed's part of a checkpoint: written so that a full disk on one rank stops no other, and
read by another number of ranks."""

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


@contextmanager
def failing_last(engine: Any) -> Iterator[None]:
    """While DeepSpeed saves, a write that fails raises its OSError only at the end of the block.

    Saving is collective: a rank that left in the middle would have the others wait for it.
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
    """DeepSpeed's checkpoint engine, but for what happens when a write fails."""

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
    """A file that swallows what comes after the first error: torch's writer, which is C++, would
    turn it into a RuntimeError without the cause."""

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
def loadable(engine: Path, ranks: Ranks, reshape: bool) -> Iterator[Path]:
    """The shards of a saved engine as this job's ranks can load them; collective.

    With `reshape`, for another number of ranks than saved them, that is DeepSpeed's universal
    checkpoint, made by the first rank beside the checkpoint and removed afterwards. Raises
    UserError where it cannot be made.
    """
    if not reshape:
        yield engine
        return
    target = engine.parent.with_name(f".{engine.parent.name}.universal") / "engine"
    try:
        ranks.on_first(lambda: _convert(engine, target))
        yield target
        ranks.barrier()
    except OSError as error:
        raise UserError(
            f"{engine} could not be converted for another number of ranks: {error}; use as many "
            "ranks as it was saved with"
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
        said = done.stderr.decode(errors="replace").strip()
        raise OSError((said or "no message").splitlines()[-1])
