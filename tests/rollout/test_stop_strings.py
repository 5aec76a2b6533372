"""How completions of rollout=hf end: stop strings, stop tokens, ends of sequences."""

import json
import shutil
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models

from bandpo.errors import UserError
from bandpo.model import embedded
from bandpo.rollout.engine import EngineSpec, Sampling
from bandpo.rollout.hf import HFGenerate
from bandpo.rollout.hf.stop_strings import StopStrings
from bandpo.types import Problem, Prompt

TOKENIZER = embedded.build_tokenizer()
BOX = r"\boxed{"  # one token


def ids(text):
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def prompt(text="x", seed=0):
    return Prompt(Problem(text, "", ""), text, tuple(ids(text)), seed)


def ends(stop, text, before="x", tokenizer=TOKENIZER):
    """Tokens of the text until one completes a stop string; None if none does."""
    find = StopStrings([prompt(before)], Sampling(n=2, stop=stop), tokenizer)
    for place, token in enumerate(ids(text)):
        # The other sample is given something else: they must not share their text.
        found = find(torch.tensor([0, 1]), torch.tensor([token, 5]))
        assert not found[1]
        if found[0]:
            return place + 1
    return None


@pytest.mark.parametrize(
    ("stop", "text", "length"),
    [
        (("ab",), "xxabcd", 4),
        (("abc", "b"), "xxabcd", 4),
        (("Question:",), "\n\nQuestion: 2", 11),
        (("\n\n",), "a\nb\n\nc", 5),
        (("½",), "a½", 3),  # two tokens
        (("a½b",), "xa½b½", 5),
        (("数",), "½", None),
        (("{",), r"so \boxed{1}", 4),  # \boxed{ is one token
        (("<|user|>",), "1<|user|>2", 2),  # a special token has its text
        (("r|>",), "1<|user|>2", 2),
        (("aa",), "aba", None),
        (("x",), "abc", None),  # in the prompt
        (("xa",), "abc", None),  # begun in the prompt
    ],
)
def test_a_stop_string_is_found_in_the_token_that_completes_it(stop, text, length):
    assert ends(stop, text) == length


def test_bytes_that_are_no_text_yet_do_not_hide_what_follows():
    half = ids("½")[:1]
    find = StopStrings([prompt()], Sampling(n=1, stop=("ab",)), TOKENIZER)
    found = [
        bool(find(torch.tensor([0]), torch.tensor([token]))) for token in [*half, *half, *ids("ab")]
    ]
    assert found == [False, False, False, True]


@pytest.mark.parametrize(
    ("stop", "length"), [(" a", 1), ("½:", 4), ("a½: a", 5), (": a a", 6), ("aa", None)]
)
def test_a_tokenizer_of_words_with_byte_fallback(stop, length):
    """As Llama 2's: a space begins a token, and is text where the prompt goes before it."""
    words = ("<unk>", "\u2581a", "b", "<0xC2>", "<0xBD>", ":")
    made = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], byte_fallback=True))
    made.decoder = decoders.Sequence(
        [
            *(decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()),
            decoders.Strip(" ", 1, 0),
        ]
    )
    prompts = [Prompt(Problem("p", "", ""), "b", (2,))]
    find = StopStrings(
        prompts, Sampling(n=1, stop=(stop,)), SimpleNamespace(backend_tokenizer=made)
    )
    found = [bool(find(torch.tensor([0]), torch.tensor([i]))) for i in (1, 3, 4, 5, 1, 1)]
    assert found.index(True) + 1 == length if length else not any(found)


def test_a_tokenizer_that_only_decodes_whole_texts_is_refused():
    with pytest.raises(UserError, match=r"rollout=hf: stop strings need.*token ids"):
        ends(("a",), "a", tokenizer=SimpleNamespace())
    StopStrings([prompt()], Sampling(n=1, stop_token_ids=(5,)), SimpleNamespace())


@pytest.fixture(scope="module")
def engine(untrained):
    return HFGenerate(EngineSpec(str(untrained())))


def sample(engine, **settings):
    """The completions of one prompt with one seed, whatever ends them."""
    (group,) = engine.generate([prompt("7 + 2", seed=3)], Sampling(n=48, **settings))
    return group.completions


def test_completions_are_those_without_a_stop_up_to_the_stop(engine):
    """The stop string's last token is kept, as the policy chose it, and so is its text."""
    free = sample(engine, max_tokens=40)
    ((stop, _),) = Counter(
        x for c in free for x in c.text[1:] if x.isascii() and x not in BOX
    ).most_common(1)
    stopped = sample(engine, max_tokens=40, stop=(stop, "never comes"))
    assert any(len(a.token_ids) < len(b.token_ids) for a, b in zip(stopped, free, strict=True))
    for a, b in zip(stopped, free, strict=True):
        length = len(a.token_ids)
        assert a.token_ids.tolist() == b.token_ids[:length].tolist()
        assert a.logprobs.tolist() == pytest.approx(b.logprobs[:length].tolist(), abs=1e-5)
        if stop in b.text:
            assert a.finish_reason == "stop" and a.text == b.text[: b.text.index(stop) + 1]
        else:
            assert (a.text, a.finish_reason) == (b.text, b.finish_reason)


def test_a_stop_token_ends_a_completion_and_stays(engine):
    free = sample(engine, max_tokens=20)
    ((token, _),) = Counter(
        i for c in free for i in c.token_ids[1:-1].tolist() if 32 <= i - 5 < 90
    ).most_common(1)
    for a, b in zip(sample(engine, max_tokens=20, stop_token_ids=(token,)), free, strict=True):
        given = b.token_ids.tolist()
        length = given.index(token) + 1 if token in given else len(given)
        assert a.token_ids.tolist() == given[:length]
        assert a.finish_reason == ("stop" if token in given else b.finish_reason)
    assert (
        token >= 5
        and TOKENIZER.decode([token])
        in sample(engine, max_tokens=20, stop_token_ids=(token,))[0].text
    )  # no special token


def test_a_completion_that_ends_at_the_limit_has_stopped(engine):
    """By its end-of-sequence token, by a stop string, by a stop token: not truncated."""
    ended = next(c for c in sample(engine, max_tokens=60) if c.finish_reason == "stop")
    index = next(
        i
        for i, c in enumerate(sample(engine, max_tokens=60))
        if c.token_ids.tolist() == ended.token_ids.tolist()
    )
    exact = sample(engine, max_tokens=len(ended.token_ids))[index]
    assert exact.token_ids.tolist() == ended.token_ids.tolist()
    assert exact.finish_reason == "stop"
    shorter = sample(engine, max_tokens=len(ended.token_ids) - 1)[index]
    assert shorter.finish_reason == "length"
    token = int(shorter.token_ids[-1])
    limit = len(shorter.token_ids)
    if token not in shorter.token_ids[:-1]:
        assert (
            sample(engine, max_tokens=limit, stop_token_ids=(token,))[index].finish_reason == "stop"
        )


def test_a_stop_string_that_is_the_end_of_sequence_changes_nothing(engine):
    assert sample(engine, max_tokens=60, stop=("<|end|>",)) == sample(engine, max_tokens=60)


# --- Odd tokenizers ---


@pytest.fixture
def folder(tmp_path):
    """A function that saves an untrained policy with so many rows and a changed tokenizer."""

    def save(rows=262, tokens=(), generation=None, **tokenizer_settings):
        tokenizer = embedded.build_tokenizer()
        tokenizer.add_tokens([AddedToken(token, special=True) for token in tokens])
        for name, value in tokenizer_settings.items():
            setattr(tokenizer, name, value)
        recipe = embedded.Recipe(hidden_size=32, heads=2, intermediate_size=64)
        embedded.build_model(recipe, rows).save_pretrained(tmp_path / "model")
        tokenizer.save_pretrained(tmp_path / "model")
        path = tmp_path / "model/generation_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | (generation or {})))
        return tmp_path / "model"

    yield save
    shutil.rmtree(tmp_path / "model", ignore_errors=True)


def completions(folder, n=64, **settings):
    engine = HFGenerate(EngineSpec(str(folder)))
    (group,) = engine.generate([prompt("7 + 2", seed=1)], Sampling(n=n, max_tokens=40, **settings))
    return group.completions, engine


def test_tokens_that_the_tokenizer_lacks_are_sampled_and_have_no_text(folder):
    found, engine = completions(folder(rows=300))
    beyond = [c for c in found if max(c.token_ids) >= 262]
    assert len(beyond) > 32
    for c in beyond:
        kept = [i for i in c.token_ids.tolist() if i < 262]
        assert c.text == TOKENIZER.decode([i for i in kept if i >= 5])
        assert len(c.token_ids) == len(c.logprobs)
        assert all(value < 0 for value in c.logprobs)
    # A stop string may be interrupted by one: its text is what counts.
    letters = {c.text[0] for c in found if c.text[:1].isascii()}
    stopped, _ = completions(engine._model.config._name_or_path, stop=tuple(letters))
    assert any(max(c.token_ids) >= 262 and c.finish_reason == "stop" for c in stopped)


def test_all_ends_count_and_one_that_is_the_padding_too(folder):
    """A list with a duplicate, an end that was added to the tokenizer, padding = end."""
    made = folder(
        rows=264,
        tokens=("<|stop|>",),
        generation={"eos_token_id": [262, 40, 40]},
        pad_token="<|end|>",
    )
    found, engine = completions(made, n=256)
    assert set(engine._ends) == {1, 40, 262}
    ended = [c for c in found if c.finish_reason == "stop"]
    assert {int(c.token_ids[-1]) for c in ended} == {1, 40, 262}
    for c in found:
        assert not {1, 40, 262} & set(c.token_ids[:-1].tolist())
        assert "<|stop|>" not in c.text and "<|end|>" not in c.text
        if c.token_ids[-1] == 40:  # an ordinary token, and so text
            assert c.text.endswith(TOKENIZER.decode([40]))


def test_the_end_that_is_the_padding_is_a_trained_token(folder):
    from bandpo.batching import Sample
    from bandpo.learner.layouts import PackedBatch, PaddedBatch
    from bandpo.types import Group

    found, _ = completions(folder(pad_token="<|end|>"))
    ended = next(c for c in found if c.finish_reason == "stop")
    longer = max(found, key=lambda c: len(c.token_ids))
    group = Group(prompt(), (ended, longer))
    samples = [Sample.of(group, i, 1.0) for i in range(2)]
    for layout in (PaddedBatch, PackedBatch):
        batch = layout.of(samples)
        assert batch.mask.sum(1).tolist() == [len(ended.token_ids), len(longer.token_ids)]
        assert int(batch.targets[len(ended.token_ids) - 1]) == 1


def test_a_tokenizer_without_padding_and_beginning(folder):
    made = folder(pad_token=None, bos_token=None)
    path = made / "config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"pad_token_id": None, "bos_token_id": None}))
    found, _ = completions(made)
    assert {c.finish_reason for c in found} == {"stop", "length"}
