"""Readers see the old content or the new, whatever happens between; failures leave nothing."""

import os

import pytest

from bandpo.disk.whole import publish_folder, replacing, write_atomically


@pytest.mark.parametrize(("content", "found"), [("½", "½".encode()), (b"\x00\xff", b"\x00\xff")])
def test_text_and_bytes_take_the_place_of_what_was_there(tmp_path, content, found):
    path = tmp_path / "file"
    path.write_text("a longer old content")
    write_atomically(path, content)
    assert path.read_bytes() == found and os.listdir(tmp_path) == ["file"]


def test_a_full_disk_leaves_the_old_file_alone(tmp_path, at_most):
    path = tmp_path / "file"
    path.write_text("old")
    with at_most(5), pytest.raises(OSError):
        write_atomically(path, "longer than five bytes")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]


def test_nothing_is_replaced_when_the_block_raises_or_before_it_ends(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as aside:
        aside.write_text("new")
        assert path.read_text() == "old"
        raise KeyboardInterrupt
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]


def test_a_link_is_moved_although_a_killed_process_left_its_own(tmp_path):
    link = tmp_path / "latest"
    for target in ("one", "two"):
        with replacing(link) as aside:
            aside.symlink_to(target)
        assert os.readlink(link) == target
        aside.symlink_to("left by a process that had the same id")


def test_a_folder_takes_the_place_of_another(tmp_path):
    old, new = tmp_path / "step", tmp_path / ".step.partial"
    for folder, name in ((old, "old"), (new, "new")):
        folder.mkdir()
        (folder / name).touch()
    publish_folder(new, old)
    assert os.listdir(tmp_path) == ["step"] and os.listdir(old) == ["new"]
