"""Weights from GPU to GPU: what is said to the servers, in which order, without a GPU.

vLLM's own trainer side runs; only what touches devices is replaced.
"""

import weakref
from types import SimpleNamespace

import pytest
import torch
import torch.multiprocessing.reductions as reductions

from bandpo.errors import UserError
from bandpo.rollout import weight_exchange
from bandpo.rollout.engine import EngineSpec
from bandpo.rollout.vllm_server import VLLMServer
from bandpo.rollout.weight_exchange import DeviceExchange

pytest.importorskip("vllm")
ipc = pytest.importorskip("vllm.distributed.weight_transfer.ipc_engine")
nccl = pytest.importorskip("vllm.distributed.weight_transfer.nccl_engine")
packing = pytest.importorskip("vllm.distributed.weight_transfer.packed_tensor")


STREAM = [(f"model.layers.{i}.w", torch.full((2, 3), float(i))) for i in range(5)]
ONE_AND_TWO = {"http://10.0.0.7:8000": 2, "http://10.0.0.8:8000": 1}


class RecordingPool:
    """Servers of given world sizes that take everything; `said` holds the requests."""

    def __init__(self, sizes, commands=True):
        self.sizes, self.commands, self.said = sizes, commands, []
        self.labels = dict.fromkeys(sizes, "default")
        self.dies_at = None  # the path at which one of them is lost
        self.on_update = lambda body: None

    def get_all(self, path):
        if path == "/weight_info":
            return {url: {"weight_version": self.labels[url]} for url in self.sizes}
        assert path == "/get_world_size"
        return {url: {"world_size": size} for url, size in self.sizes.items()}

    def post_all(self, path, body=None, **query):
        self.said.append((path, body))
        if path == "/update_weights":
            self.on_update(body)
        if path == "/finish_weight_update":
            self.labels = dict.fromkeys(self.sizes, body["weight_version"])
        return [{}] * (len(self.sizes) - (path == self.dies_at))

    def post_each(self, path, bodies):
        self.said.append((path, bodies))

    @property
    def paths(self):
        return [path for path, _ in self.said]


@pytest.fixture
def sent(monkeypatch):
    """The tensors that cross from GPU to GPU; the device functions of both transfers are fakes."""
    sent = []

    copies = SimpleNamespace(done=False)

    def broadcast(iterator, group, src, post_iter_func, buffer_size_bytes, num_buffers):
        assert copies.done, "read on another stream before the copies were made"
        copies.done = False
        sent.append([name for name, tensor in iterator])

    group = SimpleNamespace(destroy=lambda: sent.append("destroyed"))
    monkeypatch.setattr(nccl, "open_trainer_endpoint", lambda info: group)
    monkeypatch.setattr(nccl, "packed_nccl_broadcast_producer", broadcast)
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    properties = SimpleNamespace(uuid="GPU-7")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "ipc_collect", lambda: None)
    stream = SimpleNamespace(synchronize=lambda: setattr(copies, "done", True))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.accelerator, "current_stream", lambda: stream)
    return sent


@pytest.fixture
def exchange(monkeypatch, tmp_path):
    """Exchanges whose buckets hold two tensors."""
    monkeypatch.setattr(weight_exchange, "_buckets", _pairs(weight_exchange._buckets))

    def make(backend, rank=0):
        with monkeypatch.context() as patch:
            patch.setattr(torch.cuda, "is_available", lambda: True)
            return DeviceExchange(str(tmp_path), backend, rank)

    return make


def _pairs(buckets):
    return lambda weights: buckets(weights, bucket_bytes=2 * 6 * 4)


SESSION = ["/pause", "/start_weight_update", *["/update_weights"] * 3, "/finish_weight_update"]


def test_nccl_pauses_starts_updates_and_finishes_with_the_version(exchange, sent):
    made, pool = exchange("nccl"), RecordingPool(ONE_AND_TWO)
    made.send(iter(STREAM), pool, "run/1")
    assert pool.paths == ["/init_weight_transfer_engine", *SESSION]
    assert pool.said[-1] == ("/finish_weight_update", {"weight_version": "run/1"})
    names = [name for name, _ in STREAM]
    assert sent == [names[:2], names[2:4], names[4:]]
    told = [body["update_info"] for path, body in pool.said if path == "/update_weights"]
    for info, batch in zip(told, sent, strict=True):
        parsed = nccl.NCCLWeightTransferUpdateInfo(**info)  # as a server's worker reads it
        assert parsed.names == batch and set(parsed.dtype_names) == {"float32"}
        assert parsed.shapes == [[2, 3]] * len(batch)


def test_nccl_places_the_workers_of_all_servers_behind_the_trainer(exchange, sent):
    made, pool = exchange("nccl"), RecordingPool(ONE_AND_TWO)
    made.send(iter(STREAM), pool, "run/1")
    bodies = dict(pool.said)["/init_weight_transfer_engine"]
    infos = {
        url: nccl.NCCLWeightTransferInitInfo(**body["init_info"]) for url, body in bodies.items()
    }
    assert [info.rank_offset for info in infos.values()] == [1, 3]  # two workers, then one
    assert {info.world_size for info in infos.values()} == {4}
    assert len({(info.master_address, info.master_port) for info in infos.values()}) == 1


def test_nccl_meets_again_only_when_other_servers_are_in_use(exchange, sent):
    made, pool = exchange("nccl"), RecordingPool(ONE_AND_TWO)
    made.send(iter(STREAM), pool, "run/1")
    pool.said.clear()
    made.send(iter(STREAM), pool, "run/2")
    assert pool.paths == SESSION
    pool.said.clear()
    pool.sizes = {"http://10.0.0.8:8000": 1}  # the other was lost
    made.send(iter(STREAM), pool, "run/3")
    assert pool.paths == [
        *("/shutdown_weight_transfer_engine", "/init_weight_transfer_engine", *SESSION),
    ]
    assert "destroyed" in sent
    (body,) = dict(pool.said)["/init_weight_transfer_engine"].values()
    assert (body["init_info"]["rank_offset"], body["init_info"]["world_size"]) == (1, 2)


def test_nccl_meets_again_after_a_server_was_started_again(exchange, sent):
    made, pool = exchange("nccl"), RecordingPool(ONE_AND_TWO)
    made.send(iter(STREAM), pool, "run/1")
    pool.said.clear()
    pool.labels["http://10.0.0.8:8000"] = "default"
    made.send(iter(STREAM), pool, "run/2")
    assert pool.paths[1:] == ["/init_weight_transfer_engine", *SESSION]


class Worker:
    """A server's worker that shares the sender's memory, and reads as vLLM's layers do: late.

    A layer is put together when its last weight is there, one with padding at the very end. What
    the sender has let go of by then is overwritten, as an allocator would.
    """

    def __init__(self, monkeypatch):
        self.packed, self.shared, self.held = None, [], []
        self.importer = packing.PackedBufferImporter()
        for module in (ipc, packing):
            monkeypatch.setattr(module, "reduce_tensor", self._export)
        monkeypatch.setattr(reductions, "rebuild_cuda_tensor", self._open)
        monkeypatch.setattr(ipc, "rebuild_cuda_tensor", self._open)
        monkeypatch.setenv("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")
        empty = torch.empty

        def on_cpu(*size, device=None, **settings):
            return empty(*size, **settings)

        monkeypatch.setattr(torch, "empty", on_cpu)

    def _export(self, tensor):
        self.shared.append((weakref.ref(tensor), tensor.untyped_storage()))
        return None, (len(self.shared) - 1, *["of torch's own"] * 5, "device")

    def _open(self, index, *_):
        tensor, storage = self.shared[index]
        return tensor() if tensor() is not None else torch.full((storage.size(),), 255).byte()

    def receive(self, body):
        info = ipc.IPCWeightTransferUpdateInfo(**body["update_info"])
        geometry = (info.names, info.shapes, info.dtype_names)
        if self.packed:
            sizes = info.tensor_sizes
            self.held += packing.packed_ipc_consumer(
                info.ipc_handles, *geometry, sizes, device_index=0, importer=self.importer
            )
        else:  # the handle alone, until it is read
            self.held += zip(info.names, [h["GPU-7"] for h in info.ipc_handles], strict=True)

    def finish(self):
        return {n: self._open(*held) if isinstance(held, tuple) else held for n, held in self.held}


def test_what_ipc_hands_over_may_be_read_as_late_as_the_end(exchange, sent, monkeypatch):
    made, pool, worker = exchange("ipc"), RecordingPool(ONE_AND_TWO), Worker(monkeypatch)
    large = [("model.embed_tokens.weight", torch.arange(100.0).view(50, 2))]  # above a bucket
    stream = [*STREAM[:3], *large, *STREAM[3:]]

    def receive(body):
        (init, _) = dict(pool.said)["/init_weight_transfer_engine"].values()
        worker.packed = ipc.IPCWeightTransferInitInfo(**init["init_info"]).packed
        worker.receive(body)

    pool.on_update = receive
    made.send(iter(stream), pool, "run/1")
    assert pool.paths[0] == "/init_weight_transfer_engine"
    assert pool.paths[1:] == [*SESSION[:2], *["/update_weights"] * 3, SESSION[-1]]
    loaded = worker.finish()
    assert list(loaded) == [name for name, _ in stream]
    for name, tensor in stream:
        assert torch.equal(loaded[name], tensor), name


def test_other_ranks_say_nothing_and_exhaust_the_stream(exchange, sent):
    silent, stream = RecordingPool({}, commands=False), iter(STREAM)
    made = exchange("nccl", rank=1)
    silent.post_all = lambda *_, **__: []
    made.send(stream, silent, "run/1")
    assert next(stream, None) is None and silent.said == [] and sent == []


def test_a_stream_that_lost_a_name_is_never_finished(exchange, sent):
    made, pool = exchange("nccl"), RecordingPool(ONE_AND_TWO)
    made.send(iter(STREAM), pool, "run/1")
    pool.said.clear()
    with pytest.raises(RuntimeError, match=r"the weight stream lacks .*layers\.0"):
        made.send(iter(STREAM[1:]), pool, "run/2")
    assert "/finish_weight_update" not in pool.paths


def test_nothing_is_broadcast_when_a_server_was_lost_on_the_way(exchange, sent):
    made, pool = exchange("nccl"), RecordingPool(ONE_AND_TWO)
    pool.dies_at = "/start_weight_update"
    with pytest.raises(UserError, match=r"a vLLM server was lost .* restart all servers"):
        made.send(iter(STREAM), pool, "run/1")
    assert sent == []


def test_the_group_meets_where_servers_of_other_machines_find_it(monkeypatch):
    addresses = {"127.0.0.1": "127.0.0.1", "10.0.0.8": "10.0.0.5"}  # ours, as each of them sees it

    class Probe:
        def __init__(self, *kind):
            self.host = None

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def connect(self, address):
            self.host = addresses[address[0]]

        def bind(self, address):
            pass

        def getsockname(self):
            return self.host, 29501

    monkeypatch.setattr(weight_exchange.socket, "socket", Probe)
    local, remote = "http://127.0.0.1:8000", "http://10.0.0.8:8000"
    meeting_point = weight_exchange._meeting_point
    assert meeting_point([local, remote]) == ("10.0.0.5", 29501)
    assert meeting_point([local]) == meeting_point([]) == ("127.0.0.1", 29501)


def test_another_transfer_is_refused():
    with pytest.raises(UserError, match=r"transfer=rdma is neither folder, nccl nor ipc"):
        VLLMServer(EngineSpec("a/model"), urls=["http://127.0.0.1:8000"], transfer="rdma")


def test_a_machine_without_a_gpu_is_told_what_to_use(tmp_path):
    with pytest.raises(UserError, match=r"rollout\.engine\.transfer=folder"):
        DeviceExchange(str(tmp_path), "nccl", 0)
