"""A disk's refusals are one line that names the place; paths are told from a hub's names."""

import errno
from pathlib import Path

import pytest

from bandpo import cli
from bandpo.disk.lock import only_one
from bandpo.disk.paths import looks_like_path
from bandpo.disk.space import refusals_in_words, require_folder
from bandpo.errors import UserError


@pytest.mark.parametrize("place", ["/proc/foo", "/dev/null/foo", "taken/foo", "taken"])
def test_a_folder_that_cannot_be_made_is_named_with_its_setting(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match=rf"^--out {place}: no folder can be made there \("):
        require_folder(Path(place), "--out ")
    with pytest.raises(UserError, match=f"^run.dir={place}: "), only_one(Path(place)):
        pass


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "run/plots: No space .*make room"),
        (OSError(errno.EFBIG, "File too large", "a.png"), "a.png: File too large: make room"),
        (PermissionError(errno.EACCES, "Permission denied", "a.png"), "^a.png: Permission denied$"),
    ],
)
def test_refusals_are_told_in_words(error, message):
    with pytest.raises(UserError, match=message), refusals_in_words("run/plots"):
        raise error


def test_other_errors_are_left_as_they_are():
    with pytest.raises(FileNotFoundError), refusals_in_words("run"):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "a.png")
    with pytest.raises(ConnectionResetError), refusals_in_words("run"):
        raise ConnectionResetError


@pytest.mark.parametrize("figure", ["training", "timeline"])
def test_a_full_disk_during_plots_is_one_line(figure, tmp_path, at_most, capsys):
    line = '{"step": 1, "reward/mean": 0.5, "time/step_s": 1.0, "time/rollout_s": 0.5}\n'
    (tmp_path / "metrics.jsonl").write_text(line)
    with at_most(1000):
        assert cli.main(["plot", figure, str(tmp_path)]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"bandpo plot: {tmp_path}/plots") and "make room on that disk" in said


@pytest.mark.parametrize(
    "text",
    [
        *("./a", "../a", "/a", "~/a", ".", "a/b/c", "a/b.jsonl", "a.json", "my.PARQUET"),
        *("runs/model.safetensors", "data/train.csv.gz"),
    ],
)
def test_paths_are_paths(text):
    assert looks_like_path(text)


@pytest.mark.parametrize(
    "text",
    [
        *("Qwen/Qwen2.5-0.5B", "gpt2", "open-r1/DAPO-Math-17k-Processed", "org/model-v1.bin-test"),
        *("meta-llama/Llama-3.1-8B", "openai/gsm8k", "AI-MO/NuminaMath-1.5", "embedded"),
    ],
)
def test_names_of_a_hub_are_none(text):
    assert not looks_like_path(text)
