"""Text that the verifier reads: reasoning tags stay, whatever frames a completion goes."""

from types import SimpleNamespace

import pytest
from transformers import AddedToken

from bandpo.model.embedded import build_tokenizer
from bandpo.reward import MathReward, MathVerifier
from bandpo.rollout.decoding import Decoder
from bandpo.rollout.hf import HFGenerate
from bandpo.rollout.vllm_local import VLLMLocal
from bandpo.rollout.vllm_server import VLLMServer, _sampled
from bandpo.types import Group, Problem, Prompt, logprob_array, token_array

TURN = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
ASKED = "{% if add_generation_prompt %}<|assistant|><think>{% endif %}"
# Templates that write the tags themselves: into the prompt, into every answer, in other words.
IN_PROMPT = TURN + ASKED
IN_ANSWERS = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}"
    "{% endif %}<|{{ m['role'] }}|>{% if m['role'] == 'assistant' %}<think></think>{% endif %}"
    "{{ m['content'] }}<|end|>{% endfor %}"
)
REASONING = (r"<think>\boxed{8}, no</think>\boxed{9}", "9")


def tokenizer_with(*tokens, template=None, named=False):
    tokenizer = build_tokenizer()
    if named:
        tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)})
    else:
        tokenizer.add_tokens([AddedToken(token, special=True) for token in tokens])
    if template:
        tokenizer.chat_template = template
    return tokenizer


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def decoded(tokenizer, text, ended=True):
    (found,) = Decoder(tokenizer)([ids_of(tokenizer, text)], [ended])
    return found


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("template", [None, IN_PROMPT, IN_ANSWERS])
@pytest.mark.parametrize(
    "tags", [("<think>", "</think>"), ("<answer>", "</answer>"), ("[THINK]", "[/THINK]")]
)
def test_tags_stay_wherever_the_template_writes_them(tags, template, named):
    template = template and template.replace("<think></think>", "".join(tags))
    template = template and template.replace("<think>", tags[0])
    tokenizer = tokenizer_with(*tags, template=template, named=named)
    text = f"{tags[0]}a{tags[1]} 5"
    assert tokenizer.decode(ids_of(tokenizer, text), skip_special_tokens=True) == "a 5"
    assert decoded(tokenizer, f"{text}<|end|>") == text
    assert decoded(tokenizer, text, ended=False) == text


def test_what_frames_a_completion_is_left_out():
    tokenizer = tokenizer_with("<|tool|>", "<|call|>")
    assert decoded(tokenizer, "5<|end|>") == "5"
    assert decoded(tokenizer, "5<|end|><|user|>6<|pad|>", ended=False) == "56"
    assert decoded(tokenizer, "<|system|>5<|assistant|>", ended=False) == "5"
    # The end token of a model's generation configuration need not be the tokenizer's.
    assert decoded(tokenizer, "Answer: 5<|call|>") == "Answer: 5"
    assert decoded(tokenizer, "5<|call|>6", ended=False) == "5<|call|>6"
    assert decoded(tokenizer, "", ended=True) == ""


def test_ordinary_completions_are_decoded_as_before():
    tokenizer = build_tokenizer()
    texts = [r"so \boxed{12}", "  spaces  and\nlines ", "½ ≤ 数"]
    samples = [ids_of(tokenizer, f"{text}<|end|>") for text in texts]
    assert Decoder(tokenizer)(samples, [True] * 3) == texts
    assert tokenizer.batch_decode(samples, skip_special_tokens=True) == texts


def test_a_tokenizer_without_a_template():
    tokenizer = tokenizer_with("<think>", "</think>")
    tokenizer.chat_template = None
    assert decoded(tokenizer, "<think>a</think>5<|end|>") == "<think>a</think>5"


def of_hf(engine, prompt, tokens):
    arrays = token_array(tokens), logprob_array([-0.5] * len(tokens))
    return engine._group(prompt, [(*arrays, len(tokens), True)])


def of_vllm(engine, prompt, tokens):
    flat = SimpleNamespace(token_ids=tokens, logprobs=[-0.5] * len(tokens))
    sample = SimpleNamespace(index=0, token_ids=tokens, logprobs=flat, finish_reason="stop")
    return engine._group(prompt, SimpleNamespace(outputs=[sample]))


def of_server(engine, prompt, tokens):
    entries = {"content": [{"logprob": -0.5}] * len(tokens)}
    choice = {"index": 0, "token_ids": tokens, "logprobs": entries, "finish_reason": "stop"}
    return engine._group(prompt, _sampled({"choices": [choice]}))


@pytest.fixture(scope="module")
def reward():
    with MathReward(MathVerifier(workers=1)) as reward:
        yield reward


@pytest.mark.parametrize(
    ("engine", "group_of"), [(HFGenerate, of_hf), (VLLMLocal, of_vllm), (VLLMServer, of_server)]
)
def test_every_engine_shows_the_verifier_where_reasoning_ends(engine, group_of, reward):
    text, answer = REASONING
    tokenizer = tokenizer_with("<think>", "</think>", template=IN_PROMPT)
    made = engine.__new__(engine)
    made.weight_version, made._decode = 0, Decoder(tokenizer)
    asked = "<|user|>What is 4+5?<|end|><|assistant|><think>"
    prompt = Prompt(Problem("a", "What is 4+5?", answer), asked, (1,))
    for tail, status in ((text, "correct"), (text.removeprefix("<think>"), "correct")):
        group = group_of(made, prompt, ids_of(tokenizer, f"{tail}<|end|>"))
        assert isinstance(group, Group) and group.completions[0].text == tail
        (score,) = reward.submit(group).result()
        assert (score.status, score.extracted) == (status, answer)


def test_a_completion_cut_within_a_character_can_be_scored_and_saved(reward, tmp_path):
    """Byte-level tokens: the text has U+FFFD where the rest of the character is missing."""
    from bandpo.evaluation.samples import samples_of
    from bandpo.evaluation.store import SampleLog

    tokenizer = build_tokenizer()
    tokens = ids_of(tokenizer, r"\boxed{9}½")[:-1]
    group = Decoder(tokenizer).group(
        Prompt(Problem("a", "4+5", "9"), "4+5", (1,)), [(tokens, [-0.5] * len(tokens), False)], 0
    )
    (completion,) = group.completions
    assert completion.text == "\\boxed{9}\ufffd" and completion.token_ids.tolist() == tokens
    scores = reward.submit(group).result()
    assert scores[0].status == "correct"
    log = SampleLog(tmp_path / "few.jsonl")
    log.restart({})
    log.append(samples_of(group, scores))
    (kept,) = log.resume({}, 1)["a"]
    assert kept.completion == completion.text


def test_ids_beyond_the_tokenizer_have_no_text():
    tokenizer = build_tokenizer()
    assert Decoder(tokenizer)(
        [[*ids_of(tokenizer, "5"), 262, 299, *ids_of(tokenizer, "6")]], [False]
    ) == ["56"]
