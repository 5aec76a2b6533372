"""What SECURITY.md claims is held by the tests that it names."""

import json
import re
from pathlib import Path

import pytest
from document_tested import suites

from bandpo.errors import UserError
from bandpo.model.loading import load_causal_lm
from bandpo.model.source import find_model, load_tokenizer

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
CLAIMS = re.findall(r"^\| (?P<claim>.+?) \| (?P<tests>`tests/.+?) \|$", PAGE, re.MULTILINE)
CODE = """
from pathlib import Path

Path({canary!r}).write_text("ran")
Config = Model = Tokenizer = object
"""


@pytest.fixture
def canary(tmp_path):
    return tmp_path / "canary"


@pytest.fixture
def model_with_code(untrained, tmp_path, canary):
    """A sound model that names Python of its own for its config, network and tokenizer."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in untrained().iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "code.py").write_text(CODE.format(canary=str(canary)))
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "of_its_own"
    config["auto_map"] = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer["tokenizer_class"] = "OfItsOwn"
    tokenizer["auto_map"] = {"AutoTokenizer": ["code.Tokenizer"] * 2}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return folder


def test_code_that_a_model_brings_is_not_run(model_with_code, canary, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "m"))
    source = find_model(str(model_with_code))
    for load in (
        source.config,
        lambda: load_tokenizer(source),
        lambda: load_causal_lm(model_with_code, dtype="float32", attention="sdpa"),
    ):
        try:
            load()
        except Exception as error:
            assert "trust_remote_code" in str(error) or isinstance(error, UserError)
        assert not canary.exists()
    with pytest.raises(Exception):  # noqa: B017, whatever transformers makes of an empty class
        source.config(trust_remote_code=True)
    assert canary.exists()


@pytest.mark.parametrize(("claim", "tests"), CLAIMS)
def test_every_test_that_is_named_exists(claim, tests):
    named = re.findall(r"`tests/([^`]+)`", tests)
    assert named and all(suites(test) for test in named)


def test_there_are_claims():
    assert len(CLAIMS) >= 15
