"""The cache: folders are complete whenever they can be seen, and never block the next process."""

import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from bandpo.data.composite import build
from bandpo.disk.cache import FORGOTTEN_S, cache_dir, made_aside, stand_in_for_home
from bandpo.errors import UserError
from bandpo.model import warm_up
from bandpo.model.embedded import Recipe, build_model
from bandpo.model.source import find_model

ROOT = Path(__file__).resolve().parents[1]
QUICK = Recipe(hidden_size=16, intermediate_size=16, layers=1, heads=1)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BANDPO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def left_by_a_kill(folder: Path) -> Path:
    """A folder that an earlier process with this one's id had begun."""
    left = folder.with_name(f"{folder.name}.{os.getpid()}")
    left.mkdir(parents=True)
    (left / "config.json").write_text("{")
    return left


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_policy_is_made_beside_what_a_kill_has_left(cache, monkeypatch):
    monkeypatch.setattr(warm_up, "warm_up", lambda recipe, report: build_model(recipe, 262))
    made = warm_up.ensure(QUICK)
    made.rename(made.with_name("away"))
    (left_by_a_kill(made) / "half.json").touch()
    assert warm_up.ensure(QUICK) == made
    assert names(made) == names(made.with_name("away"))


def test_a_dataset_is_made_beside_what_a_kill_has_left(tmp_path):
    source = tmp_path / "few.jsonl"
    source.write_text('{"id": "1", "problem": "1 + 1 = ?", "answer": "2"}\n', encoding="utf-8")
    place = build([str(source)], folder=str(tmp_path / "made")).folder
    place.rename(tmp_path / "away")
    left_by_a_kill(place)
    assert build([str(source)], folder=str(tmp_path / "made")).folder == place


def test_weights_are_converted_beside_what_a_kill_has_left(cache, tmp_path):
    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    torch.save({"weight": torch.ones(2)}, folder / "pytorch_model.bin")
    copy = Path(find_model(str(folder), allow_pickle=True).path)
    copy.rename(copy.with_name("away"))
    left_by_a_kill(copy)
    assert Path(find_model(str(folder), allow_pickle=True).path) == copy
    assert names(copy) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("age", [0.0, 2 * FORGOTTEN_S])
@pytest.mark.parametrize("machine", [socket.gethostname(), "elsewhere"])
def test_what_nobody_goes_on_making_is_removed(age, machine, tmp_path):
    left = tmp_path / f"policy.{machine}-{'0' * 32}"
    left.mkdir()
    other = tmp_path / "policy.with-a-name-of-its-own"
    other.mkdir()
    then = time.time() - age
    for path in (left, other):
        os.utime(path, (then, then))
    with made_aside(tmp_path / "policy"):
        pass
    # What another machine has just begun may be at work there.
    assert left.exists() == (machine == "elsewhere" and age == 0)
    assert other.exists()


def test_a_process_that_is_killed_leaves_nothing_for_long(tmp_path):
    script = (
        "import sys, time; from pathlib import Path; from bandpo.disk.cache import made_aside\n"
        "with made_aside(Path(sys.argv[1])) as aside:\n"
        "    (aside / 'half').touch(); print('begun', flush=True); time.sleep(600)\n"
    )
    target = tmp_path / "policy"
    command = [sys.executable, "-c", script, str(target)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout.readline() == b"begun\n"
        with made_aside(tmp_path / "policy") as aside:
            (aside / "whole").touch()
        assert len(names(tmp_path)) == 2  # the one at work is left alone
        process.send_signal(signal.SIGKILL)
    (target / "whole").unlink()
    target.rmdir()
    with made_aside(target) as aside:
        (aside / "whole").touch()
    assert names(tmp_path) == ["policy"] and names(target) == ["whole"]


def test_of_those_that_race_one_wins_and_all_agree(tmp_path):
    def make(number):
        with made_aside(tmp_path / "policy") as aside:
            for part in ("a", "b"):
                (aside / part).write_text(str(number))
        return [(tmp_path / "policy" / part).read_text() for part in ("a", "b")]

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(make, range(32)))
    assert all(pair == found[0] for pair in found)
    assert names(tmp_path) == ["policy"]


def test_a_failure_leaves_nothing(tmp_path):
    with pytest.raises(OSError, match="full"), made_aside(tmp_path / "policy") as aside:
        (aside / "half").touch()
        raise OSError("the disk is full")
    assert names(tmp_path) == []


@pytest.mark.parametrize("home", [None, "/dev/null", "/dev/null/home"])
def test_a_user_without_a_home_has_a_cache_all_the_same(home, tmp_path, monkeypatch):
    for name, value in {"BANDPO_CACHE": None, "HOME": home, "TMPDIR": str(tmp_path)}.items():
        monkeypatch.delenv(name, raising=False)
        if value:
            monkeypatch.setenv(name, value)
    if home is None:  # and no entry among the system's users either
        monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    monkeypatch.setattr("tempfile.tempdir", None)
    folder = cache_dir()
    assert folder == tmp_path / f"bandpo-{os.getuid()}"
    assert folder.stat().st_mode & 0o777 == 0o700


KEPT_AT_HOME = ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "TRITON_HOME", "MPLCONFIGDIR", "HF_HOME")


def test_libraries_without_a_home_keep_their_files_in_the_cache(tmp_path, monkeypatch):
    for name in (*KEPT_AT_HOME, "BANDPO_CACHE"):
        monkeypatch.setenv(name, "")  # restored in the end, whatever is set meanwhile
        monkeypatch.delenv(name)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    stand_in_for_home()
    assert not any(name in os.environ for name in KEPT_AT_HOME)
    monkeypatch.setenv("HOME", "/dev/null")
    monkeypatch.setenv("MPLCONFIGDIR", "chosen")
    stand_in_for_home()
    own = str(tmp_path / f"bandpo-{os.getuid()}")
    assert [os.environ.get(name) for name in KEPT_AT_HOME] == [own, own, own, "chosen", None]


def test_another_users_folder_is_not_taken_for_ones_own(tmp_path, monkeypatch):
    monkeypatch.delenv("BANDPO_CACHE", raising=False)
    monkeypatch.setenv("HOME", "/dev/null")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "theirs").mkdir()
    (tmp_path / f"bandpo-{os.getuid()}").symlink_to(tmp_path / "theirs")
    with pytest.raises(UserError, match="BANDPO_CACHE"):
        cache_dir()
