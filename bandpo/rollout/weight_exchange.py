"""Transfer of weights from the learner to vLLM servers."""

from __future__ import annotations

import ipaddress
import pickle
import socket
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any, Literal, Protocol

import httpx
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from bandpo.errors import UserError
from bandpo.rollout.servers import ServerPool
from bandpo.rollout.vllm_installed import require_vllm

Weights = Iterable[tuple[str, Tensor]]

SHARED_MEMORY = Path("/dev/shm")
BUCKET_BYTES = 1 << 29
OLDEST_VLLM_WITH_TRANSFER = (0, 32, 0)  # the oldest whose trainer side was checked


class WeightExchange(Protocol):
    """Sends a stream of weights to the servers; collective over the ranks."""

    def send(self, weights: Weights, pool: ServerPool, label: str) -> None:
        """Pauses the servers, replaces all weights and labels them; the caller resumes the servers.

        Raises RuntimeError for an incomplete stream.
        """
        ...


class FolderExchange:
    """Transfer through safetensors files in a folder that the servers see under the same path.

    Works without CUDA. On one machine the folder is in shared memory, and nothing touches a disk.
    """

    def __init__(self, model_path: str, folder: str | None = None) -> None:
        """`folder` must exist; raises UserError if it does not.

        Files in a named folder are readable for servers of other users; its own permissions decide
        who can enter it.
        """
        self._others_read = folder is not None
        self.folder = Path(folder or (SHARED_MEMORY if SHARED_MEMORY.is_dir() else gettempdir()))
        if not self.folder.is_dir():
            raise UserError(
                f"rollout.engine.exchange={self.folder}: no such folder; name one that this "
                "machine and the servers see under the same path"
            )
        self._names = _checkpoint_names(Path(model_path))

    def send(self, weights: Weights, pool: ServerPool, label: str) -> None:
        """Writes the whole stream before the servers read it, and removes it afterwards."""
        if not pool.commands:
            for _ in weights:
                pass
            return
        with TemporaryDirectory(prefix="bandpo-weights-", dir=self.folder) as folder:
            self._names = _complete(write_weights(weights, Path(folder)), self._names)
            if self._others_read:  # both are created for their owner alone
                Path(folder).chmod(0o755)
                for file in Path(folder).iterdir():
                    file.chmod(0o644)
            pool.post_all("/pause", mode="wait")
            body = {"method": "reload_weights", "kwargs": {"weights_path": folder}}
            try:
                pool.post_all("/collective_rpc", body)
            except UserError as error:
                raise UserError(
                    f"{error}\nIf a server does not see {self.folder} of this machine, name a "
                    "folder that it sees under the same path: rollout.engine.exchange"
                ) from None
        pool.post_all("/update_weight_version", {"new_version": label})


class DeviceExchange:
    """Transfer from GPU to GPU by vLLM's own weight transfer, one bucket at a time.

    `nccl` broadcasts from the first rank to servers on any GPUs of any node; `ipc` passes handles
    to memory of GPUs that learner ranks and servers share. Its calls are tested; it has not yet run
    on GPUs.
    """

    def __init__(self, model_path: str, backend: Literal["nccl", "ipc"], rank: int) -> None:
        """Raises UserError for another backend, without a GPU, or where vLLM is too old."""
        if backend not in ("nccl", "ipc"):
            raise UserError(f"rollout.engine.transfer={backend} is neither folder, nccl nor ipc")
        if not torch.cuda.is_available():
            raise UserError(
                f"rollout.engine.transfer={backend} needs an NVIDIA GPU in the learner's process "
                "too; rollout.engine.transfer=folder does not"
            )
        require_vllm(OLDEST_VLLM_WITH_TRANSFER)
        self._backend, self._rank = backend, rank
        self._names = _checkpoint_names(Path(model_path))
        self._engine: Any = None
        self._connected: dict[str, Any] | None = None
        self._label = ""

    def send(self, weights: Weights, pool: ServerPool, label: str) -> None:
        """Starts the update, sends the buckets, finishes it."""
        self._connect(pool)
        pool.post_all("/pause", mode="wait")
        self._all_are_there(pool.post_all("/start_weight_update"))
        names: set[str] = set()
        for bucket in _buckets(weights):
            names.update(bucket.owned_names(self._rank))
            # vLLM's broadcast reads on streams of its own, which do not wait for the copies.
            torch.cuda.current_stream().synchronize()
            self._engine.source = bucket
            if self._backend == "ipc":
                self._engine.packed_buffer_size_bytes = bucket.nbytes  # the bucket in one piece
            self._engine.send_weights()
        self._names = _complete(frozenset(names), self._names)
        pool.post_all("/finish_weight_update", {"weight_version": label})
        self._label = label

    def _connect(self, pool: ServerPool) -> None:
        """Makes the transfer's process group anew unless all servers took part in the last sync.

        A server that was restarted since then has lost the label with the connection.
        """
        from vllm.distributed.weight_transfer import WeightTransferTrainerFactory

        sizes = {url: reply["world_size"] for url, reply in pool.get_all("/get_world_size").items()}
        labels = {reply["weight_version"] for reply in pool.get_all("/weight_info").values()}
        if sizes == self._connected and labels <= {self._label}:
            return
        if self._connected is not None:
            self._engine.shutdown()
            pool.post_all("/shutdown_weight_transfer_engine")
        self._engine = WeightTransferTrainerFactory.trainer_init(
            self._trainer(sizes), client=_Client(pool, sizes), source=_Bucket()
        )
        self._connected = sizes

    def _all_are_there(self, replies: Sequence[Any]) -> None:
        """Raises UserError if a server is gone: a broadcast to it would wait forever."""
        if self._backend == "nccl" and len(replies) < len(self._connected or ()):
            raise UserError(
                "a vLLM server was lost while the others prepared for new weights: restart all "
                "servers and repeat the command; a training run resumes from its last checkpoint"
            )

    def _trainer(self, sizes: Mapping[str, int]) -> Any:
        if self._backend == "ipc":
            from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

            # Packed, servers copy what they are handed. Otherwise they read a layer's tensors when
            # the last one is there, a padded embedding's at the end: their bucket would be gone.
            return IPCTrainerInitInfo(rank=self._rank, packed=True)
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        host, port = _meeting_point(sizes)
        return NCCLTrainerInitInfo(
            rank=self._rank,
            master_address=host,
            master_port=port,
            world_size=1 + sum(sizes.values()),
        )


class _Client:
    """The inference client of vLLM's trainer side, for all servers at once.

    An update spans all buckets, so that `DeviceExchange.send` starts and finishes it.
    """

    def __init__(self, pool: ServerPool, sizes: Mapping[str, int]) -> None:
        self._pool, self._sizes = pool, sizes

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Ranks of a server's workers follow those of the server before it."""
        bodies, offset = {}, init_info.get("rank_offset")
        for url, size in self._sizes.items():
            own = init_info if offset is None else init_info | {"rank_offset": offset}
            bodies[url] = {"init_info": own}
            offset = None if offset is None else offset + size
        self._pool.post_each("/init_weight_transfer_engine", bodies)

    def start_weight_update(self) -> None:
        """Does nothing: once for all buckets."""

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Pickles handles of shared memory, which JSON cannot hold, for servers that allow it."""
        if (handles := update_info.pop("ipc_handles", None)) is not None:
            pickled = b64encode(pickle.dumps(handles)).decode()
            update_info = update_info | {"ipc_handles_pickled": pickled}
        self._pool.post_all("/update_weights", {"update_info": update_info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Does nothing: once for all buckets."""


class _Metadata(list[Any]):
    """Of all tensors of a bucket: an attribute in vLLM 0.33, a method in 0.32."""

    def __call__(self) -> _Metadata:
        return self


class _Bucket:
    """A part of the stream as a `WeightSource` of vLLM 0.33, which 0.32 takes for one of its own.

    It is none by inheritance: 0.33 refuses a subclass whose `metadata` is the method of 0.32.
    """

    def __init__(self) -> None:
        self._tensors: list[tuple[str, Tensor]] = []

    def append(self, name: str, tensor: Tensor) -> None:
        """Adds a tensor."""
        self._tensors.append((name, tensor))

    def __len__(self) -> int:
        return len(self._tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for _, tensor in self._tensors)

    @property
    def metadata(self) -> _Metadata:
        """Name, dtype and shape of every tensor."""
        from vllm.distributed.weight_transfer import ParamMeta

        return _Metadata(
            ParamMeta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in self._tensors
        )

    def owned_names(self, rank: int) -> list[str]:
        """Every rank has every tensor."""
        del rank
        return [name for name, _ in self._tensors]

    def implements_iter_full(self) -> bool:
        """True: it has whole tensors."""
        return True

    def implements_iter_local(self) -> bool:
        """False: it has no shards."""
        return False

    def iter_full(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor, in the order of `metadata`."""
        return iter(self._tensors)

    __iter__ = iter_full


def _buckets(weights: Weights, bucket_bytes: int = BUCKET_BYTES) -> Iterator[_Bucket]:
    """The stream in parts of about `bucket_bytes`, copied: ZeRO-3 releases gathered layers."""
    bucket = _Bucket()
    for name, tensor in weights:
        bucket.append(name, tensor.detach().clone(memory_format=torch.contiguous_format))
        if bucket.nbytes >= bucket_bytes:
            yield bucket
            bucket = _Bucket()
    if len(bucket):
        yield bucket


def _meeting_point(urls: Iterable[str]) -> tuple[str, int]:
    """This machine's address as servers on other machines, if any, see it, and a free port."""
    host = "127.0.0.1"
    for url in urls:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((httpx.URL(url).host, 9))  # sends nothing
            found = probe.getsockname()[0]
        if not ipaddress.ip_address(found).is_loopback:
            host = found
            break
    with socket.socket() as probe:
        probe.bind(("", 0))
        return host, probe.getsockname()[1]


def write_weights(
    weights: Weights, folder: Path, bucket_bytes: int = BUCKET_BYTES
) -> frozenset[str]:
    """Writes the stream as safetensors files of about `bucket_bytes`; returns its names.

    At most one bucket is held in memory. Tied tensors are written once for each name, since vLLM on
    a CPU has its own copy of a tied head.
    """
    names: list[str] = []
    bucket: dict[str, Tensor] = {}

    def write() -> None:
        save_file(bucket, folder / f"weights-{len(names):06d}.safetensors")
        bucket.clear()

    for name, tensor in weights:
        names.append(name)
        # A copy: ZeRO-3 releases a gathered layer when the stream continues.
        bucket[name] = tensor.detach().to("cpu", copy=True).contiguous()
        if sum(t.nbytes for t in bucket.values()) >= bucket_bytes:
            write()
    if bucket:
        write()
    return frozenset(names)


def _complete(names: frozenset[str], expected: frozenset[str]) -> frozenset[str]:
    """The names; raises RuntimeError if one is missing, which vLLM would only log."""
    if missing := expected - names:
        raise RuntimeError(f"the weight stream lacks {sorted(missing)[:5]}")
    return names


def _checkpoint_names(folder: Path) -> frozenset[str]:
    """Names of the tensors in the folder's safetensors files; none if it is no local folder."""
    names: set[str] = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            names.update(file.keys())
    return frozenset(names)
