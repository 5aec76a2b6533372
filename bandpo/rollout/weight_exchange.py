"""How weights travel from the learner to vLLM servers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Protocol

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from bandpo.errors import UserError

Weights = Iterable[tuple[str, Tensor]]
Tell = Callable[..., object]
"""Posts to a path of every server, (path, JSON body, **query), and returns when all answered."""

SHARED_MEMORY = Path("/dev/shm")
BUCKET_BYTES = 1 << 29


class WeightExchange(Protocol):
    """Brings a stream of weights into the servers; used by the first rank only."""

    def send(self, weights: Weights, tell: Tell) -> None:
        """Pauses the servers and replaces all their weights; they are resumed by the caller.

        Raises RuntimeError for an incomplete stream.
        """
        ...


class FolderExchange:
    """Through safetensors files in a folder that the servers see under the same path.

    Works without CUDA. Between processes of one machine the folder is in shared memory, and
    nothing touches a disk.
    """

    def __init__(self, model_path: str, folder: str | None = None) -> None:
        """`folder` must exist; raises UserError if it does not."""
        self.folder = Path(folder or (SHARED_MEMORY if SHARED_MEMORY.is_dir() else gettempdir()))
        if not self.folder.is_dir():
            raise UserError(
                f"rollout.engine.exchange={self.folder}: no such folder; name one that this "
                "machine and the servers see under the same path"
            )
        self._names = _checkpoint_names(Path(model_path))

    def send(self, weights: Weights, tell: Tell) -> None:
        """Writes the whole stream before the servers hear of it, and removes it afterwards."""
        with TemporaryDirectory(prefix="bandpo-weights-", dir=self.folder) as folder:
            names = write_weights(weights, Path(folder))
            # vLLM keeps what a stream lacks, and only logs it.
            if missing := self._names - names:
                raise RuntimeError(f"the weight stream lacks {sorted(missing)[:5]}")
            self._names = names
            tell("/pause", mode="wait")
            body = {"method": "reload_weights", "kwargs": {"weights_path": folder}}
            try:
                tell("/collective_rpc", body)
            except UserError as error:
                raise UserError(
                    f"{error}\nIf a server does not see {self.folder} of this machine, name a "
                    "folder that it sees under the same path: rollout.engine.exchange"
                ) from None


def write_weights(
    weights: Weights, folder: Path, bucket_bytes: int = BUCKET_BYTES
) -> frozenset[str]:
    """Writes the stream as safetensors files of about `bucket_bytes`; returns its names.

    At most one bucket is held in memory. Tied tensors are written once for each name, since
    vLLM on a CPU keeps a copy of its own of a tied head.
    """
    names: list[str] = []
    bucket: dict[str, Tensor] = {}

    def write() -> None:
        save_file(bucket, folder / f"weights-{len(names):06d}.safetensors")
        bucket.clear()

    for name, tensor in weights:
        names.append(name)
        # A copy: ZeRO-3 takes a gathered layer back when the stream goes on.
        bucket[name] = tensor.detach().to("cpu", copy=True).contiguous()
        if sum(t.nbytes for t in bucket.values()) >= bucket_bytes:
            write()
    if bucket:
        write()
    return frozenset(names)


def _checkpoint_names(folder: Path) -> frozenset[str]:
    """The tensors of the checkpoint's safetensors files; none where it is not a local folder."""
    names: set[str] = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            names.update(file.keys())
    return frozenset(names)
