"""generation_config.json: its sampling settings as written, and a note that they are not used."""

import json

import pytest

from bandpo.errors import UserError
from bandpo.model.generation import generation_settings

QWEN3 = {
    "bos_token_id": 151643,
    "do_sample": True,
    "eos_token_id": [151645, 151643],
    "pad_token_id": 151643,
    "temperature": 0.6,
    "top_k": 20,
    "top_p": 0.95,
    "transformers_version": "4.51.0",
}


def write(folder, content):
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "generation_config.json").write_text(text)
    return folder


def test_sampling_settings_and_the_others(tmp_path):
    found = generation_settings(write(tmp_path, {**QWEN3, "min_p": None, "max_new_tokens": 9}))
    assert found.sampling == {"temperature": 0.6, "top_p": 0.95, "top_k": 20}
    assert found.others == {"do_sample": True, "max_new_tokens": 9}
    (note,) = found.unused()
    assert note.startswith(
        "generation_config.json has temperature=0.6, top_p=0.95, top_k=20: not used"
    )


def test_nothing_is_said_where_nothing_is_set(tmp_path):
    assert generation_settings(tmp_path).unused() == []
    assert generation_settings(write(tmp_path, {"eos_token_id": 1})).unused() == []


@pytest.mark.parametrize("content", ["{", "[1]", "nothing"])
def test_a_file_that_is_none_is_named(tmp_path, content):
    with pytest.raises(UserError, match=r"generation_config\.json: not a generation"):
        generation_settings(write(tmp_path, content))
