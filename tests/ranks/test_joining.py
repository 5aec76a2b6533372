"""How processes find each other, and how long they wait."""

import os
import subprocess
import sys
from datetime import timedelta

import pytest
import torch

from bandpo.config.composition import compose
from bandpo.config.schema import Config
from bandpo.errors import UserError
from bandpo.ranks import joining
from bandpo.ranks.collectives import Alone, Ranks

deepspeed = pytest.importorskip("deepspeed")


@pytest.fixture
def joined(monkeypatch):
    """The arguments of process groups, which are not made."""
    made = []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: False)
    monkeypatch.setattr(
        deepspeed, "init_distributed", lambda backend, **given: made.append((backend, given))
    )
    monkeypatch.setattr(
        torch.distributed, "new_group", lambda **given: made.append(("apart", given))
    )
    return made


def test_a_server_is_given_up_before_the_other_ranks_are(joined):
    joining.join(torch.device("cuda", 0))
    object.__new__(Ranks).apart()
    (backend, everyone), (_, apart) = joined
    assert backend == "nccl" and apart["backend"] == "gloo"
    engine = compose("train", ["rollout=vllm_server"], Config).rollout.engine
    for group in (everyone, apart):
        assert group["timeout"] > 2 * timedelta(seconds=engine["timeout_s"])


PORT = "from bandpo.ranks.joining import announce_single_process as announce; announce(); "
PORT += "import os; print(os.environ['WORLD_SIZE'], os.environ['MASTER_PORT'])"


@pytest.fixture
def environment(monkeypatch):
    """As a process finds it that no launcher started; left as it was."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", joining.ALONE):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_a_process_that_one_alone_starts_has_a_job_of_its_own(environment):
    """It would listen on a port that its parent has taken."""
    joining.announce_single_process()
    own = os.environ["MASTER_PORT"]
    joining.announce_single_process()
    assert os.environ["MASTER_PORT"] == own
    size, childs = subprocess.check_output([sys.executable, "-c", PORT], text=True).split()
    assert size == "1" and childs != own


def test_what_a_launcher_announced_stays(environment, monkeypatch):
    joining.announce_single_process()  # also where it was started by a process that is alone
    monkeypatch.setenv(joining.ALONE, os.environ[joining.ALONE].replace(str(os.getpid()), "1"))
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("MASTER_PORT", "7")
    joining.announce_single_process()
    assert os.environ["RANK"] == "1" and os.environ["MASTER_PORT"] == "7"


def test_a_process_alone_shares_with_itself():
    alone = Alone()
    assert alone.is_first and alone.share([3, 4]) == alone.gather_interleaved([3, 4]) == [3, 4]
    assert alone.gather("a") == ["a"] and alone.agree(lambda: 1) == [1]
    assert alone.any(True) and not alone.any(False)
    assert torch.equal(alone.sum(torch.ones(2)), torch.ones(2))
    alone.barrier()
    alone.apart().close()


def test_a_rank_without_a_gpu_of_its_own_is_refused(monkeypatch):
    """CUDA would call it an invalid ordinal."""
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert joining.own_device() == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match=r"rank 2 of this machine has no GPU, torch sees 2"):
        joining.own_device()
    assert chosen == [torch.device("cuda", 1)]


@pytest.mark.parametrize("address", ["127.0.1.1", "127.0.0.1", None])
def test_a_host_that_other_nodes_cannot_reach_is_refused(monkeypatch, address):
    def resolve(name):
        if address is None:
            raise OSError("Name or service not known")
        return address

    monkeypatch.setattr(joining.socket, "gethostbyname", resolve)
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    with pytest.raises(UserError, match="set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME"):
        joining.require_reachable_host()
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth0")
    joining.require_reachable_host()


def test_a_host_with_an_address_of_its_own_is_fine(monkeypatch):
    asked = []

    def resolve(name):
        asked.append(name)
        return "10.0.0.7"

    monkeypatch.setattr(joining.socket, "gethostbyname", resolve)
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    joining.require_reachable_host()
    assert asked == [joining.socket.gethostname()]


def test_ranks_that_found_a_process_group_leave_it_to_the_others(host):
    """An evaluation in the process of a run, say, ends before the run does."""
    with Ranks() as ranks:
        assert ranks.size == host.ranks.size
    assert torch.distributed.is_initialized()
    assert host.ranks.gather("still there") == ["still there"]
