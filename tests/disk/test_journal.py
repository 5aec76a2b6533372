"""The record on a disk that refuses: the kernel's own limit on file sizes stands in for it."""

import pytest

from bandpo.disk import journal
from bandpo.disk.journal import Journal
from bandpo.errors import UserError


@pytest.fixture
def said():
    return []


def test_lines_wait_for_room_and_none_is_cut_in_half(tmp_path, said, at_most):
    log, metrics = Journal(said.append), tmp_path / "metrics.jsonl"
    log.append(metrics, "step 1\n")
    with at_most(10):
        log.append(metrics, "step 2\n")
        log.append(metrics, "step 3\n")
        log.write(tmp_path / "samples/step_3", "much of it\n" * 9)
        assert metrics.read_text() == "step 1\n"
        assert not (tmp_path / "samples/step_3").exists()
        with pytest.raises(OSError):
            log.flush()
    assert len(said) == 1 and "metrics.jsonl" in said[0] and "waits in memory" in said[0]
    log.append(metrics, "step 4\n")
    assert metrics.read_text() == "".join(f"step {i}\n" for i in (1, 2, 3, 4))
    assert (tmp_path / "samples/step_3").read_text() == "much of it\n" * 9
    assert "are on the disk now" in said[1]
    log.flush()


def test_a_file_is_replaced_whole(tmp_path, said, at_most):
    path = tmp_path / "samples"
    Journal(said.append).write(path, "old")
    with at_most(5):
        log = Journal(said.append)
        log.write(path, "newer than that")
        assert path.read_text() == "old"
    log.flush()
    assert path.read_text() == "newer than that"


def test_what_waits_is_bounded(tmp_path, said, at_most, monkeypatch):
    monkeypatch.setattr(journal, "MOST_WAITING", 100)
    log = Journal(said.append)
    with at_most(10):
        log.append(tmp_path / "x", "a" * 60)
        with pytest.raises(UserError, match="resumes from its last checkpoint"):
            log.append(tmp_path / "x", "b" * 60)
