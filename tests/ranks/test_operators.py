"""DeepSpeed's operators are built by one process at a time, and after one that was killed."""

import fcntl
import os
import shlex
import sys
from pathlib import Path

import pytest

from bandpo.config.sections.learner import LearnerConfig
from bandpo.learner import policy
from bandpo.ranks.joining import building_operators

adam = pytest.importorskip("deepspeed.ops.adam")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    monkeypatch.setattr("bandpo.ranks.joining.cache_dir", lambda: tmp_path)
    yield tmp_path / "operators"
    os.environ.pop("TORCH_EXTENSIONS_DIR", None)


def is_taken(folder: Path) -> bool:
    """Whether another process would have to wait."""
    (turn,) = folder.glob("*/building")
    with turn.open("w") as other:
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_a_lock_that_a_killed_build_left_is_removed(folder):
    with building_operators():
        (own,) = folder.iterdir()
        assert is_taken(folder) and os.environ["TORCH_EXTENSIONS_DIR"] == str(own)
    assert not is_taken(folder)
    lock = own / "deepspeed_shm_comm/lock"
    lock.parent.mkdir()
    lock.touch()
    with building_operators():
        assert not lock.exists()


def test_the_build_takes_the_environments_own_ninja(folder, monkeypatch):
    """A system's ninja of another release would find everything out of date."""
    monkeypatch.setenv("PATH", "/elsewhere")
    with building_operators():
        assert os.environ["PATH"] == f"{Path(sys.executable).parent}{os.pathsep}/elsewhere"
    assert os.environ["PATH"] == "/elsewhere"


def test_a_folder_of_the_users_own_is_left_to_the_user(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "theirs"))
    with building_operators():
        assert not folder.exists()


def test_the_offloaded_optimizer_is_compiled_in_turn(folder, monkeypatch):
    """Eight ranks of a node would otherwise compile it side by side."""
    seen = []
    monkeypatch.setattr(adam, "DeepSpeedCPUAdam", lambda *_, **__: seen.append(is_taken(folder)))
    network = policy.torch.nn.Linear(1, 1)
    policy._optimizer(LearnerConfig(lr=1e-3, offload="optimizer"), network)
    assert seen == [True]


def test_an_environment_may_lie_in_a_path_with_a_space(folder, monkeypatch):
    from torch.utils import cpp_extension

    monkeypatch.setattr(cpp_extension, "TORCH_LIB_PATH", "/an environment/torch/lib")
    with building_operators():
        flags = cpp_extension._prepare_ldflags([], False, False, False, False)
        assert shlex.split(" ".join(flags))[0] == "-L/an environment/torch/lib"
    assert cpp_extension.TORCH_LIB_PATH == "/an environment/torch/lib"
