"""A fingerprint changes with everything that a model is loaded from, and with nothing else."""

import os
from pathlib import Path

import pytest
import torch

from bandpo.disk.cache import cache_dir
from bandpo.errors import UserError
from bandpo.model import files
from bandpo.model.files import weights_fingerprint
from bandpo.model.source import ModelSource, find_model

SIZE = 3 * (1 << 20)  # more than a MiB at either end, which once was all that was read
FILES = [
    *("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "config.json"),
    *("generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
    *("adapter_model.safetensors", "modeling_own.py", "additional_chat_templates/tool_use.jinja"),
]


@pytest.fixture
def folder(tmp_path):
    model = tmp_path / "model"
    for name in FILES:
        path = model / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(SIZE) if path.suffix == ".safetensors" else b"{}\n" + name.encode())
    (model / "README.md").write_text("a model")
    return model


def change(path, place):
    """Another byte, in a file of the same size, time and inode."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(place)
        old = file.read(1)
        file.seek(place)
        file.write(bytes([old[0] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns and path.stat().st_ino == before.st_ino


@pytest.mark.parametrize("name", FILES)
def test_one_bit_in_the_middle_of_any_file_is_another_model(folder, name):
    before = weights_fingerprint(folder)
    assert weights_fingerprint(folder) == before
    path = folder / name
    change(path, path.stat().st_size // 2)
    assert weights_fingerprint(folder) != before
    change(path, path.stat().st_size // 2)
    assert weights_fingerprint(folder) == before


def test_names_and_missing_files_count_and_the_model_card_does_not(folder):
    seen = {weights_fingerprint(folder)}
    (folder / "README.md").write_text("the same model")
    (folder / ".cache").write_text("")
    assert weights_fingerprint(folder) in seen
    for old, new in (("modeling_own.py", "modeling_other.py"), ("generation_config.json", None)):
        (folder / old).rename(folder / new) if new else (folder / old).unlink()
        assert weights_fingerprint(folder) not in seen
        seen.add(weights_fingerprint(folder))


def test_every_part_of_a_large_file_counts(folder, monkeypatch):
    monkeypatch.setattr(files, "PART", 1000)
    path = folder / FILES[0]
    path.write_bytes(bytes(2500))
    before = weights_fingerprint(folder)
    for place in (0, 999, 1000, 1999, 2000, 2499):
        change(path, place)
        assert weights_fingerprint(folder) != before
        change(path, place)
    path.write_bytes(bytes(2501))
    assert weights_fingerprint(folder) != before


def test_what_cannot_be_identified_is_refused(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="no weights"):
        weights_fingerprint(tmp_path)
    monkeypatch.setattr("transformers.utils.cached_file", lambda *_: "/somewhere/config.json")
    with pytest.raises(UserError, match="model=org/name: no commit identifies these weights"):
        ModelSource("org/name", "org/name").identity()
    found = f"/hub/models--org--name/snapshots/{'9f' * 20}/config.json"
    monkeypatch.setattr("transformers.utils.cached_file", lambda *_: found)
    assert ModelSource("org/name", "org/name").identity()["weights"] == "9f" * 20


def test_converted_pickles_are_converted_anew_with_another_tokenizer(tmp_path, monkeypatch):
    monkeypatch.setenv("BANDPO_CACHE", str(tmp_path / "cache"))
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    torch.save({"w": torch.ones(2)}, model / "pytorch_model.bin")
    cache_dir().mkdir()
    for text in ("{}", '{"chat_template": "other"}'):
        (model / "tokenizer_config.json").write_text(text)
        copy = Path(find_model(str(model), allow_pickle=True).path)
        assert (copy / "tokenizer_config.json").read_text() == text
