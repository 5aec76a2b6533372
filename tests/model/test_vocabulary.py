"""Tokenizer and model: tokens that only one of them has, and how a completion ends."""

import json
import shutil

import pytest
from transformers import AutoConfig, AutoTokenizer

from bandpo.data.prompts import build_prompts
from bandpo.errors import UserError
from bandpo.model import embedded
from bandpo.model.vocabulary import end_tokens, examine_tokenizer, require_known_stops
from bandpo.types import Problem, Prompt


@pytest.fixture
def folder(untrained, tmp_path):
    return shutil.copytree(untrained(), tmp_path / "model")


def configure(folder, name, **settings):
    path = folder / name
    kept = json.loads(path.read_text()) | settings
    path.write_text(json.dumps({key: value for key, value in kept.items() if value is not None}))


def parts(folder):
    return AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def examined(folder, prompts=()):
    config, tokenizer = parts(folder)
    return examine_tokenizer(folder, config, tokenizer, prompts)


def prompt(*ids):
    return Prompt(Problem("p7", "", ""), "", ids)


def without_end(folder):
    for name in ("config.json", "generation_config.json"):
        configure(folder, name, eos_token_id=None)
    configure(folder, "tokenizer_config.json", eos_token=None)
    if (folder / "special_tokens_map.json").exists():
        configure(folder, "special_tokens_map.json", eos_token=None)


def test_our_own_tokenizer_comes_back_as_it_was_saved(folder):
    config, loaded = parts(folder)
    made = embedded.build_tokenizer()
    assert len(made) == len(loaded) == config.vocab_size
    assert made.get_vocab() == loaded.get_vocab()
    assert type(made) is type(loaded)
    again = folder / "again"
    shutil.copytree(folder, again)
    loaded.save_pretrained(again)
    text = "e\u0301 — 7+2=9;\\boxed{9}<|end|> ∫\n\n 数  don't"
    tokenizers = (made, loaded, AutoTokenizer.from_pretrained(again))
    assert len({tuple(tokenizer.encode(text)) for tokenizer in tokenizers}) == 1
    assert {len(tokenizer) for tokenizer in tokenizers} == {262}
    ids = made.encode("1<|user|><|end|>\\boxed{2}")
    for tokenizer in tokenizers:
        assert tokenizer.decode(ids, skip_special_tokens=True) == "1\\boxed{2}"
    problems = [Problem("p", "1 + 1", "2")]
    assert examined(folder, build_prompts(problems, loaded, "boxed", 512)[0]) == []


def test_tokens_that_the_model_has_not_are_refused_where_a_prompt_holds_them(folder):
    # transformers adds the special tokens that a class of tokenizers wants and the files lack.
    configure(folder, "tokenizer_config.json", unk_token="<|endoftext|>")
    _, tokenizer = parts(folder)
    assert tokenizer.get_vocab()["<|endoftext|>"] == 262
    (note,) = examined(folder, [prompt(3, 261)])
    assert "'<|endoftext|>'; none is used" in note
    with pytest.raises(UserError, match=r"problem 'p7' contains '<\|endoftext\|>' \(262\)"):
        examined(folder, [prompt(3), prompt(5, 262)])


@pytest.mark.parametrize("source", ["tokenizer", "generation", "config", "none", "beyond"])
def test_the_end_of_a_completion_is_looked_for_where_engines_look(folder, source):
    without_end(folder)
    if source == "tokenizer":
        configure(folder, "tokenizer_config.json", eos_token="<|end|>")
    if source == "generation":
        configure(folder, "generation_config.json", eos_token_id=[1, 0])
    if source == "config":
        configure(folder, "config.json", eos_token_id=1)
        (folder / "generation_config.json").unlink()
    if source == "beyond":
        configure(folder, "tokenizer_config.json", eos_token="<|endoftext|>")
        configure(folder, "generation_config.json", eos_token_id=5000)
    config, tokenizer = parts(folder)
    ends = end_tokens(folder, config, tokenizer)
    assert ends == {
        "tokenizer": {1: "<|end|>"},
        "generation": {0: "<|pad|>", 1: "<|end|>"},
        "config": {1: "<|end|>"},
    }.get(source, {})
    if not ends:
        with pytest.raises(UserError, match=r"no token ends a completion.*eos_token_id"):
            examined(folder)


TURN = "{%% for m in messages %%}<|{{ m['role'] }}|>{{ m['content'] }}%s{%% endfor %%}"


@pytest.mark.parametrize(
    ("ending", "told"),
    [
        ("<|end|>", None),
        ("\n<|end|>\n", None),
        ("<|system|>\n", "ends a turn with '<|system|>' (2)"),
        ("", None),
    ],
)
def test_a_template_that_ends_turns_with_another_token_is_told(folder, ending, told):
    (folder / "chat_template.jinja").write_text(TURN % ending)
    notes = examined(folder)
    assert len(notes) == (told is not None)
    if told:
        assert told in notes[0] and "'<|end|>' (1) does" in notes[0] and "[1, 2]" in notes[0]


def test_a_template_that_raises_is_left_to_the_prompts(folder):
    (folder / "chat_template.jinja").write_text("{{ raise_exception('no assistant') }}")
    assert examined(folder) == []


def test_ends_of_all_three_files_count_once_each(folder):
    configure(folder, "tokenizer_config.json", eos_token="<|end|>")
    configure(folder, "generation_config.json", eos_token_id=[7, 1, 7])
    configure(folder, "config.json", eos_token_id=[9, 5000])
    config, tokenizer = parts(folder)
    assert list(end_tokens(folder, config, tokenizer)) == [1, 7, 9]


def test_an_end_that_no_file_names_is_not_made_up(tmp_path):
    """The class of a configuration has one of its own: Llama's is 2."""
    from transformers import LlamaConfig

    sizes = {"vocab_size": 262, "hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 32}
    LlamaConfig(**sizes, num_attention_heads=2).save_pretrained(tmp_path)
    configure(tmp_path, "config.json", eos_token_id=None, bos_token_id=None)
    embedded.build_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 4}')
    config, tokenizer = parts(tmp_path)
    assert config.eos_token_id == 2
    assert list(end_tokens(tmp_path, config, tokenizer)) == [1, 4]


def test_a_stop_that_the_model_never_samples_is_refused(folder):
    config, _ = parts(folder)
    require_known_stops((0, 261), config, "rollout.stop")
    with pytest.raises(UserError, match=r"rollout\.stop: the model has tokens 0 to 261.*262, 9999"):
        require_known_stops((5, 262, 9999), config, "rollout.stop")


@pytest.mark.parametrize("stop", [2, "<|system|>", "|>\n"])
def test_a_stop_ends_a_turn_as_well(folder, stop):
    (folder / "chat_template.jinja").write_text(TURN % "<|system|>\n")
    config, tokenizer = parts(folder)
    assert examine_tokenizer(folder, config, tokenizer, (), [stop]) == []
    assert len(examine_tokenizer(folder, config, tokenizer, (), [3, "other"])) == 1


def test_a_model_without_an_end_may_have_stops(folder):
    without_end(folder)
    config, tokenizer = parts(folder)
    with pytest.raises(UserError, match="or name stops"):
        examine_tokenizer(folder, config, tokenizer, ())
    tokenizer.chat_template = None
    (note,) = examine_tokenizer(folder, config, tokenizer, (), ["\n\n"])
    assert "none is used" in note
