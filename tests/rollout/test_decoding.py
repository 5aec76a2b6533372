"""Text that the verifier reads: reasoning tags stay, whatever frames a completion goes."""

from types import SimpleNamespace

import pytest
from transformers import AddedToken

from bandpo.data.prompts import NONE, Prompting, build_prompts
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


def test_tokens_around_turns_are_those_of_the_chat_template_that_prompts_have(tmp_path):
    tokenizer = build_tokenizer()
    tokenizer.add_tokens([AddedToken("<|turn|>", special=True)])
    own, file = tokenizer.chat_template, tmp_path / "mine.jinja"
    file.write_text("{% for m in messages %}<|turn|>{{ m.content }}{% endfor %}<|turn|>")
    samples = [ids_of(tokenizer, "5<|turn|>6")]
    assert Decoder(tokenizer)(samples, [False]) == ["5<|turn|>6"]
    assert Decoder(tokenizer, str(file))(samples, [False]) == ["56"]
    assert tokenizer.chat_template == own


def test_ids_beyond_the_tokenizer_have_no_text():
    tokenizer = build_tokenizer()
    assert Decoder(tokenizer)(
        [[*ids_of(tokenizer, "5"), 262, 299, *ids_of(tokenizer, "6")]], [False]
    ) == ["56"]


# As R1's, Qwen3's, Magistral's and gpt-oss's write them; the last frames its turns with tokens that
# also stand within a completion.
R1 = TURN + "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
QWEN3 = TURN + (
    "{% if add_generation_prompt %}<|assistant|>{% if enable_thinking is defined and "
    "enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
MAGISTRAL = TURN.replace("<|end|>", "[/INST]")
HARMONY = (
    "{% for m in messages %}<|start|>{{ m.role }}{% if m.role == 'assistant' %}<|channel|>final"
    "{% endif %}<|message|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
TAGS, MARKS = ("<think>", "</think>"), ("[THINK]", "[/THINK]", "[/INST]")
CHANNELS = ("<|start|>", "<|message|>", "<|channel|>", "<|return|>")
ANALYSIS = r"<|channel|>analysis<|message|>\boxed{8}?"
FINAL = r"<|end|><|start|>assistant<|channel|>final<|message|>\boxed{9}<|return|>"
OFF, ON = {"enable_thinking": False}, {"enable_thinking": True}


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize(
    ("tokens", "template", "variables", "completion", "answer"),
    [
        (TAGS, R1, {}, r"\boxed{8}?</think>\boxed{9}<|end|>", "9"),
        (TAGS, R1, {}, r"\boxed{8}?", None),
        (TAGS, R1, {}, r"\boxed{8}!<|end|>", None),
        (TAGS, QWEN3, ON, "<think>\\boxed{8}?</think>\\boxed{9}<|end|>", "9"),
        (TAGS, QWEN3, {}, "<think>\n\\boxed{8}?", None),
        (TAGS, QWEN3, OFF, r"\boxed{9}<|end|>", "9"),
        (TAGS, QWEN3, OFF, r"<think>\boxed{8}", None),
        (MARKS, MAGISTRAL, {}, r"[THINK]\boxed{8}?[/THINK]\boxed{9}<|end|>", "9"),
        (MARKS, MAGISTRAL, {}, r"[THINK]\boxed{8}?", None),
        (CHANNELS, HARMONY, {}, ANALYSIS + FINAL, "9"),
        (CHANNELS, HARMONY, {}, ANALYSIS, None),
    ],
)
def test_an_answer_within_the_reasoning_of_a_template_is_none(
    tokens, template, variables, completion, answer, special, reward
):
    tokenizer = build_tokenizer()
    # Of gpt-oss's tokens all are special; those of R1's and Qwen3's tags are not.
    kind = {"special": special or tokens is CHANNELS, "normalized": False}
    tokenizer.add_tokens([AddedToken(token, **kind) for token in tokens])
    tokenizer.chat_template = template
    problem = Problem("a", "What is 4+5?", "9")
    prompting = Prompting(NONE, variables=variables)
    (prompt,), _ = build_prompts([problem], tokenizer, prompting, 1000)
    ids = ids_of(tokenizer, completion)
    ended = completion.endswith(("<|end|>", "<|return|>"))
    group = Decoder(tokenizer).group(prompt, [(ids, [-0.5] * len(ids), ended)], 0)
    (score,) = reward.submit(group).result()
    assert (score.extracted, score.status) == (answer, "correct" if answer else "truncated")
